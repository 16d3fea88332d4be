"""How one step is made: the exact step of the global batch, under Keras' own `fit`."""
