"""The training step under Keras' own `fit`: that of the global batch, whatever it is divided into."""
