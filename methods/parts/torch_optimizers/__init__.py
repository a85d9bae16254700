"""Optimizers of torch, of other packages and of files in the one training loop."""
