"""Measurements of the benchmark itself; each writes a page under results/tables."""
