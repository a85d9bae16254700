"""The peak memory of every method and stack, simulated and counted, held against what it was."""
