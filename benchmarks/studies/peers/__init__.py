"""Compare ours with what a user would otherwise run: the same tensors, one process, interleaved."""
