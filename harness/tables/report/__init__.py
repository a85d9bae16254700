"""The report of a suite: its tables, in each format."""
