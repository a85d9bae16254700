"""A suite as one HTML file with tables and charts, which opens anywhere."""
