"""Models: shapes, weights, checkpoints and their export."""
