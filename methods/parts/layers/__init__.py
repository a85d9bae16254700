"""Layers with a backward pass of their own."""
