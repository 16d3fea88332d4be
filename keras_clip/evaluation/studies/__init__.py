"""Analyses of evaluation scores: robustness, transfer, scaling, class design, data overlap, published values."""
