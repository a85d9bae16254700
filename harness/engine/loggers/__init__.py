"""Show the course of runs in programs that others made, while the runs are at work."""
