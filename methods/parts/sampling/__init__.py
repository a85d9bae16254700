"""Train some layers at a time, drawn anew in each interval."""
