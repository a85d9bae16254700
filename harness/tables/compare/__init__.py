"""Two states of the code held against each other: records in, verdicts with their causes out."""
