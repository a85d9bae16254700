"""Quantities of a suite over commits: records in, series with steps and breaks out."""
