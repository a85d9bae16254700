"""Published figures, each beside ours, with what may be said of it."""
