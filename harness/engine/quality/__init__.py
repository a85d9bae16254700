"""Quality of a model: perplexity by protocol, and accuracy on lm-eval tasks."""
