"""The harness of lorebench: it knows no method by name."""

__version__ = "0.1.0"
