"""One file per method; a new method needs its file and one line in the registry."""
