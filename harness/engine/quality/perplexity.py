"""Score token sequences by a model: their negative log-likelihood and perplexity.

Which text a protocol scores and how it is cut is `protocols.py`. Nothing here divides by anything but the
number of predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UserError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation mode, then each back to its previous mode (frozen parts may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Scored:
    """Summed negative log-likelihood over `tokens` predictions, and each sequence's own sum, in order."""

    nll_nats: float
    tokens: int
    sequence_nll_nats: list[float]

    @property
    def perplexity(self) -> float:
        """Return exp(nll / tokens)."""
        try:
            return math.exp(self.nll_nats / self.tokens)
        except OverflowError:
            return math.inf


def score(
    model: nn.Module, sequences: Sequence[np.ndarray | list[int]], batch: int, device: torch.device
) -> Scored:
    """Score each sequence alone: its first token is context only, the other n - 1 are predicted.

    Sequences of like length share a batch, padded on the right: under causal attention no token sees
    what follows it, so padding needs no mask and the result does not depend on `batch` (but for the
    float noise of matrix products of another shape). Log-softmax in float32, sums in float64.
    UserError when there is nothing to predict.
    """
    tokens = sum(max(len(sequence) - 1, 0) for sequence in sequences)
    if tokens == 0:
        raise UserError(f"nothing to score: {len(sequences)} sequences, none longer than one token")
    # the longest first, so that memory runs out at the start or not at all
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    nll = [0.0] * len(sequences)
    with evaluating(model), torch.no_grad():  # no inference mode: a model may cache what it computes
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            values = _batch_nll(model, [sequences[index] for index in chosen], device)
            for index, value in zip(chosen, values, strict=True):
                nll[index] = value
    return Scored(math.fsum(nll), tokens, nll)


def _batch_nll(
    model: nn.Module, sequences: Sequence[np.ndarray | list[int]], device: torch.device
) -> list[float]:
    """Return the nll (nats) of each sequence, the longest first; one batch of logits is in memory."""
    lengths = [len(sequence) for sequence in sequences]
    if lengths[0] < 2:
        return [0.0] * len(sequences)
    padded = np.zeros((len(sequences), lengths[0]), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : lengths[row]] = sequence
    ids = torch.from_numpy(padded).to(device)
    logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits  # (batch, longest - 1, vocabulary)
    sums = [  # row by row, so that only one sequence's logits are ever held in float32
        F.cross_entropy(logits[row, : n - 1].float(), ids[row, 1:n], reduction="none").double().sum()
        for row, n in enumerate(lengths)
    ]
    return torch.stack(sums).tolist()
