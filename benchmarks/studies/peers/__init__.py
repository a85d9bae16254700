"""Ours beside what a user would otherwise run: the same tensors, one process, in turns."""
