"""Sequences that a perplexity protocol scores, and how their losses become its value.

Needs no torch: a worker reads the protocols before it loads torch and writes its first record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness import strict_json
from harness.files import private, private_folder

if TYPE_CHECKING:
    from harness.engine.quality.perplexity import Scored


@dataclass(frozen=True)
class ScoredText:
    """Sequences to score alone: the first token of each is context only.

    `dropped_tokens` fill no window at the end; `context` is the window's length, None where each document is
    scored by itself. `floor` is the perplexity of the generator on the same tokens. `batches` are the rows
    per batch of each process, where a protocol averages batch means. `warnings` are for the record.
    """

    text: str
    sequences: Sequence[np.ndarray]
    dropped_tokens: int = 0
    context: int | None = None
    floor: float | None = None
    batches: tuple[tuple[int, ...], ...] = ()
    warnings: tuple[str, ...] = ()

    def perplexity(self, scored: Scored) -> float:
        """Return the perplexity over all tokens, or by batch means where the protocol defines it so."""
        if not self.batches:
            return scored.perplexity
        predicted = [max(len(sequence) - 1, 0) for sequence in self.sequences]
        try:
            return math.exp(mean_of_batch_means(scored.sequence_nll_nats, predicted, self.batches))
        except OverflowError:
            return math.inf


def mean_of_batch_means(
    nll_nats: Sequence[float], predicted: Sequence[int], batches: Sequence[Sequence[int]]
) -> float:
    """Return the loss (nats) as GaLore's code reports it: batch means, summed, over batches + 1.

    A batch's mean is over its tokens that are not padding, and n batches are divided by n + 1, because the
    counter starts at 1; then processes are averaged. So a loss is too low by the factor n/(n + 1). Documents,
    rows, batches, their order and the divisor are those of the code. The arithmetic is float64; the code
    rounds each mean to bfloat16 (relative error up to 1/512, of either sign) and sums in float32. A batch
    without a token to predict gives NaN, as there. Source: arXiv 2403.03507, code.
    """
    nats, tokens = iter(nll_nats), iter(predicted)
    losses = []
    for sizes in batches:
        total = 0.0
        for size in sizes:
            count = sum(islice(tokens, size))
            total += math.fsum(islice(nats, size)) / count if count else math.nan
        losses.append(total / (len(sizes) + 1))
    return sum(losses) / len(losses)


def write_sequences(path: Path, text: ScoredText, scored: Scored) -> None:
    """Write one line per sequence: a hash of its tokens, how many were predicted, and their sum in nats.

    Equal hashes show that two runs scored the same tokens.
    """
    private_folder(path.parent)
    with open(path, "w", encoding="utf-8", opener=private) as file:
        for sequence, nats in zip(text.sequences, scored.sequence_nll_nats, strict=True):
            tokens = np.ascontiguousarray(sequence, dtype="<i8")
            line = {
                "sha256": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
                "tokens": max(len(tokens) - 1, 0),
                "nll_nats": nats,
            }
            file.write(strict_json.text(line))
