"""Quantities of a suite over commits: records in, series with change points and breaks out."""
