"""Labelled images: their sources, the datasets that the paper evaluates, and the names of their classes."""
