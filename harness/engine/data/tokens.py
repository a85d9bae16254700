"""Turn a text into training tokens: those of its documents in windows or rows, in an order by a seed.

Packed documents are joined and cut into windows of constant length, so there is no padding and every token
counts; as rows each document has one row: padded on the right, cut or dropped when it is longer. The loss
ignores `PAD`, and under causal attention no token sees what is to its right, so no mask is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.config import DataConfig, EmbeddedData, RandomData, TaskData
from harness.engine.data import doubts
from harness.engine.data.encoding import remembered, stored
from harness.engine.data.parts import parts_of
from harness.engine.data.shards import Stored
from harness.engine.data.token_cache import TokenCache
from harness.engine.data.windows import (
    PaddedRows,
    Windows,
    packed,
    pad,
    sha256_and_counts,
    shuffled,
)
from harness.errors import UserError

RANDOM_WINDOWS = 512  # enough that no window repeats within a speed run
#: The share of tokens left out from which a warning is worth its line.
DROPPED = 0.1


@dataclass(frozen=True)
class Tokens:
    """Training windows (count, seq_len) int64 on the host or on disk, and where they came from.

    `real_tokens` (those that are no padding) and `dropped_rows` (documents left out) are None when packed.
    `warnings` are for the record.
    """

    windows: np.ndarray | Windows
    name: str
    sha256: str
    documents: int | None = None
    revision: str | None = None
    dropped_tokens: int = 0
    real_tokens: int | None = None
    dropped_rows: int | None = None
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def count(self) -> int:
        """Return the number of tokens in the windows, padding included."""
        return int(self.windows.size)

    @property
    def padded(self) -> bool:
        """Return whether the windows may hold padding, written as `PAD`."""
        return self.real_tokens is not None

    def batches(self, batch: int, seed: int, first: int = 0) -> Iterator[np.ndarray]:
        """Yield batches (batch, seq_len) without end: each epoch visits every window once in a new order.

        `first` is the number of the first batch, from 0. In memory are a batch and the order of an epoch.
        """
        rng = np.random.default_rng(seed)
        order = np.empty(0, dtype=np.int32)
        while True:
            while len(order) < batch:
                following = shuffled(len(self.windows), rng)
                order = np.concatenate([order, following]) if len(order) else following
            chosen, order = order[:batch], order[batch:]
            if first > 0:
                first -= 1
                continue
            yield self.windows[chosen]


def load_tokens(
    config: DataConfig, tokenizer: Any, vocab_size: int, seed: int, cache: TokenCache | None = None
) -> Tokens:
    """Tokenise the training part of the data, pack or pad it; UserError when it cannot be trained on."""
    if isinstance(config, RandomData):
        windows = np.random.default_rng(seed).integers(0, vocab_size, (RANDOM_WINDOWS, config.seq_len))
        return Tokens(windows, "random", sha256_and_counts(windows)[0])
    parts = parts_of(config, cache)
    cache = None if isinstance(config, EmbeddedData) else cache
    text = stored(parts.trained, tokenizer, ends_in_mark(config), cache)
    laid = _windows(config, text, tokenizer, parts.name)
    sha256, counts = _about(laid[0], text, cache, config, len(laid[0]))
    if (largest := len(counts) - 1) >= vocab_size:
        raise UserError(
            f"the tokenizer gives ids up to {largest}, but the model has a vocabulary of {vocab_size}; "
            "use the tokenizer that belongs to the model"
        )
    found = Tokens(laid[0], parts.name, sha256, len(parts.trained), parts.revision, *laid[1:])
    return replace(found, warnings=tuple(_doubts(found, text, counts, tokenizer)))


def _about(
    windows: Windows, text: Stored, cache: TokenCache | None, config: DataConfig, count: int
) -> tuple[str, np.ndarray]:
    """Return the hash of windows and how often each id occurs in them."""

    def make() -> dict[str, Any]:
        sha256, counts = sha256_and_counts(windows)
        return {"sha256": sha256, "counts": counts.tolist()}

    key = json.dumps([type(windows).__name__, config.seq_len, getattr(config, "too_long", None), count])
    found = remembered(text, "windows", key, cache, make)
    return found["sha256"], np.asarray(found["counts"], dtype=np.int64)


def _doubts(found: Tokens, text: Stored, counts: np.ndarray, tokenizer: Any) -> list[str]:
    """Return what makes training on a text doubtful."""
    what, dropped = f"training text {found.name}", found.dropped_tokens
    warnings = doubts.of_counts(counts, tokenizer, what)
    warnings += doubts.of_letters(text.letters, text.lost, what)
    total = int(counts.sum()) + dropped
    if dropped / total >= DROPPED:
        warnings.append(f"{what}: {dropped} of {total} tokens are left out: they fill no row of data.seq_len")
    return warnings


def ends_in_mark(config: DataConfig) -> bool:
    """Return whether documents get the end mark; examples of a task have none in the papers' code."""
    return not isinstance(config, TaskData) and bool(getattr(config, "end_token", True))


def padded(config: DataConfig) -> bool:
    """Return whether batches of this data may hold padding; packed windows never do."""
    return isinstance(config, TaskData) or getattr(config, "layout", "packed") == "rows"


def _windows(config: DataConfig, text: Stored, tokenizer: Any, name: str) -> tuple[Windows, int] | PaddedRows:
    """Pack or pad documents."""
    if not padded(config):
        return packed(text, config.seq_len, name)
    drop = isinstance(config, TaskData) and config.too_long == "drop"
    marked = ends_in_mark(config) and tokenizer.eos_token_id is not None
    return pad(text, config.seq_len, name, drop=drop, keep_last=marked)
