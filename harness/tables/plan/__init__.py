"""What a suite needs and where it fits: forecasts in, a table out."""
