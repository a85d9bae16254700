"""Tuners of the installed `peft` in the one training loop."""
