"""The embedded default benchmark: a generated world, a tokenizer, a trained base model and six tasks.

Nothing here needs a network or a GPU. `world` generates the text, `build` trains the checkpoint in `base/`,
and `tasks/` holds the lm-eval task files.
"""
