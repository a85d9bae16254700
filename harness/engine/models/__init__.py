"""Models: shapes, weights, folders, and their export."""
