"""Text and tasks, as tokens."""
