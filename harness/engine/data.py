"""Where tokens come from: documents tokenised, packed into windows, shuffled by a seed.

Every document becomes `<s> tokens </s>` (each mark where the tokenizer has it); the documents are
joined and cut into windows of constant length, so no padding exists and every token counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.config import DataConfig, DatasetsData, EmbeddedData, FilesData, RandomData
from harness.engine import texts
from harness.errors import UserError

RANDOM_WINDOWS = 512  # enough that no window repeats within a speed run


@dataclass(frozen=True)
class Tokens:
    """Training windows (count, seq_len) int64 on the host, and where they came from."""

    windows: np.ndarray
    name: str
    sha256: str
    documents: int | None = None
    revision: str | None = None
    dropped_tokens: int = 0

    @property
    def count(self) -> int:
        """The number of tokens in the windows."""
        return int(self.windows.size)

    def batches(self, batch: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches (batch, seq_len): each epoch visits every window once in an order of its own."""
        rng = np.random.default_rng(seed)
        order = np.empty(0, dtype=np.int64)
        while True:
            while len(order) < batch:
                order = np.concatenate([order, rng.permutation(len(self.windows))])
            chosen, order = order[:batch], order[batch:]
            yield self.windows[chosen]


def load(config: DataConfig, tokenizer: Any, vocab_size: int, seed: int) -> Tokens:
    """Tokenise and pack the training part of the data; UserError when it cannot be trained on."""
    if isinstance(config, RandomData):
        windows = np.random.default_rng(seed).integers(0, vocab_size, (RANDOM_WINDOWS, config.seq_len))
        return Tokens(windows, "random", _sha256(windows))
    documents, name, revision = _training_documents(config)
    stream = encode(documents, tokenizer, end=getattr(config, "end_token", True))
    windows, dropped = pack(stream, config.seq_len, name)
    if windows.max() >= vocab_size:
        raise UserError(
            f"the tokenizer gives ids up to {windows.max()}, but the model has a vocabulary of {vocab_size}; "
            "use the tokenizer that belongs to the model"
        )
    return Tokens(windows, name, _sha256(windows), len(documents), revision, dropped)


def split_documents(documents: Sequence[str], holdout: float) -> tuple[list[str], list[str]]:
    """The documents to train on and the last share of them, which is only ever scored.

    A single document is cut at a paragraph or line end near the same share, so that a novel works too.
    """
    if len(documents) > 1:
        cut = max(1, min(len(documents) - 1, round(len(documents) * (1 - holdout))))
        return list(documents[:cut]), list(documents[cut:])
    text = documents[0]
    cut = text.find("\n", int(len(text) * (1 - holdout)))
    cut = cut if cut > 0 else int(len(text) * (1 - holdout))
    return [text[:cut]], [text[cut:].strip()]


def documents_of(config: FilesData | DatasetsData) -> tuple[list[str], str, str | None]:
    """All documents of a user's text, with a name and a revision for the record."""
    if isinstance(config, FilesData):
        names = [texts.existing_file(path).name for path in config.paths]
        return texts.documents_of_files(config), ", ".join(names), None
    found, revision = texts.documents_of_dataset(config)
    return found, f"{config.id}/{config.name or 'default'}/{config.split}", revision


def encode(documents: Sequence[str], tokenizer: Any, end: bool = True) -> np.ndarray:
    """One int64 stream of all documents with their marks."""
    if tokenizer is None:
        raise UserError(
            "this model has no tokenizer: put its files into the model's folder, set model.tokenizer "
            "of a shape, or data.source to random"
        )
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    last = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return np.fromiter((token for ids in encoded for token in (*first, *ids, *last)), dtype=np.int64)


def pack(stream: np.ndarray, seq_len: int, name: str) -> tuple[np.ndarray, int]:
    """Cut a stream into windows (count, seq_len); also return how many tokens at the end were dropped."""
    count = len(stream) // seq_len
    if count == 0:
        raise UserError(
            f"{name}: {len(stream)} tokens are fewer than one window of {seq_len}; "
            "give more text or a smaller data.seq_len"
        )
    return stream[: count * seq_len].reshape(count, seq_len), len(stream) - count * seq_len


def _training_documents(config: EmbeddedData | FilesData | DatasetsData) -> tuple[list[str], str, str | None]:
    if isinstance(config, EmbeddedData):
        from benchmarks.embedded import world

        found = world.documents(config.world, "train", config.documents)
        return [document.text for document in found], f"world-{config.world}", str(world.WORLD_VERSION)
    documents, name, revision = documents_of(config)
    return split_documents(documents, config.holdout)[0], name, revision


def _sha256(windows: np.ndarray) -> str:
    shape = str(windows.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()
