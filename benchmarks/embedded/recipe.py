"""The recipe of the embedded base checkpoint: every number that decides which bytes a build writes."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of tokenizer, model and training.

    `window` is the length of a training sequence in tokens, `batch` the number of windows of one step. Most
    steps have more but shorter windows with about as many tokens: a model learns to look back into a story
    sooner when few other stories stand around it. The number of `threads` decides how sums are rounded. The
    learning rate rises linearly over `warmup_steps`, then falls along a cosine to `final_learning_rate`. The
    loss counts the answer of a question `answer_weight` times at the first step, and falls to once at the
    last: an answer is one token in nineteen, and most others cannot be predicted, so without that
    weight their noise hides the skills.
    """

    seed: int = 1
    vocabulary: int = 1024
    tokenizer_documents: int = 10000
    hidden: int = 128
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    initial_std: float = 0.08
    max_length: int = 512
    steps: int = 3000
    batch: int = 8
    window: int = 128
    short_window: int = 42
    short_share: float = 0.9
    threads: int = 1
    answer_weight: float = 10.0
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 50
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    test_documents: int = 2000
    test_questions: int = 400

    @property
    def tokens(self) -> int:
        """Return the number of tokens that training sees."""
        return sum(math.prod(self.shape_at(step)) for step in range(self.steps))

    def shape_at(self, step: int) -> tuple[int, int]:
        """Return the number of windows of step 0, 1, ..., steps - 1 and their length in tokens."""
        if step < int(self.short_share * self.steps):
            return self.batch * (self.window // self.short_window), self.short_window
        return self.batch, self.window

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step 0, 1, ..., steps - 1."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = (1 + math.cos(math.pi * progress)) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * fall

    def answer_weight_at(self, step: int) -> float:
        """Return how often the loss of step 0, 1, ..., steps - 1 counts an answer."""
        return self.answer_weight + (1 - self.answer_weight) * step / max(1, self.steps - 1)
