"""Checkpoints of a training: what it must keep, on a disk that may fail, to go on in another process."""
