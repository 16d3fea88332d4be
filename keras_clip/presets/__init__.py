"""Published models: their architectures and the layouts of their checkpoints."""
