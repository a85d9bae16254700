"""The steps of a sweep that the runner takes before and between runs. No torch."""
