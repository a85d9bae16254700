"""Records in, answers out; nothing here runs a model."""
