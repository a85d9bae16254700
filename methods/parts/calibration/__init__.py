"""What a model does to calibration text: the inputs of its layers, and its loss."""
