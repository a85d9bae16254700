"""Benchmarks that ship with the harness."""
