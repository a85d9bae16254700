"""Forecasts of memory from a run's own code on tensors without values."""
