"""Gradients projected to a low-rank subspace."""
