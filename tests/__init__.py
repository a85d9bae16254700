"""The tests; a package, so that they share fixtures by `from tests.support.tiny import ...`."""
