"""Bytes to pixels and tokens."""

