"""The parent's side of one run: its job file, its process, its progress."""
