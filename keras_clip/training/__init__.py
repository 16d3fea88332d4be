"""How a model learns: the paper's optimizer and schedule."""

