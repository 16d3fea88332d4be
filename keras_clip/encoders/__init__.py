"""Pixels or tokens to features (B, D)."""

