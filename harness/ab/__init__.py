"""The command `ab`: two revisions of the code run the same rows, interleaved on one machine."""
