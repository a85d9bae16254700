"""Weights replaced by two factors."""
