"""The memory of the shapes suite: predicted, measured and published side by side, and how it grows."""
