"""Tensors stored as small integers."""
