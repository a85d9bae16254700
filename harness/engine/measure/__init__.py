"""Peak memory, bytes by component, and speed."""
