"""One run in its own process, phase by phase."""
