"""Ours beside what a user would otherwise run: the same tensors in one process, interleaved."""
