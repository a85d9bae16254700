"""Carry out one run from the parent process: its job file, its process, its progress."""
