"""Published values compared with ours, with a verdict on each."""
