"""Pruning of whole attention heads and MLP channels: which go, masks while training, and the removal."""
