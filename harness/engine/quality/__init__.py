"""Perplexity by protocol, and the accuracy of lm-eval tasks."""
