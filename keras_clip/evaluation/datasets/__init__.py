"""Images with labels: where they are read from, which data sets the paper evaluates, and the names of their classes."""
