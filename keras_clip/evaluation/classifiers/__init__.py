"""Classifiers on stored features and embeddings: zero-shot, linear probes, nearest neighbours, adapters."""
