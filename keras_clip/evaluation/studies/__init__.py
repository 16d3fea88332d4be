"""Analyses of scores: robustness, transfer, scaling, class design, overlap with training data, published values."""
