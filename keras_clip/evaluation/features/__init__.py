"""Image features and embeddings, encoded once and kept on disk."""
