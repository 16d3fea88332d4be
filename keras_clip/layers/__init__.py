"""Tensors to tensors: the parts that encoders and models are made of."""

