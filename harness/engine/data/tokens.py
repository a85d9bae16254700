"""Turn documents into training tokens: tokenise, pack into windows or pad into rows, shuffle by a seed.

Every document becomes `<s> tokens </s>` (each mark where the tokenizer has it). Packed documents are joined
and cut into windows of constant length, so there is no padding and every token counts; as rows each document
has one row: padded on the right, cut or dropped when it is longer. Padding is written as `PAD`, so that one
array of rows serves as input and as labels: the loss ignores `PAD`, and under causal attention no token sees
what is to its right, so no mask is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from harness import registry
from harness.config import DataConfig, DatasetsData, EmbeddedData, FilesData, RandomData, TaskData
from harness.engine.data import doubts
from harness.engine.data.documents import documents_of_dataset, documents_of_files, existing_file
from harness.engine.data.tasks import training_texts
from harness.engine.data.token_cache import Blocks, TokenCache, cached, text_sha256
from harness.errors import UserError

RANDOM_WINDOWS = 512  # enough that no window repeats within a speed run
#: A tokenizer returns Python integers, which take five times the bytes of an array's.
TOKENISED_AT_ONCE = 1000
PAD = -100  # the default ignore_index of torch.nn.functional.cross_entropy
#: The input id in place of padding: `<unk>` of LLaMA's tokenizer, `<pad>` of T5's, as in the papers.
PAD_TOKEN = 0
#: The share of tokens left out from which a warning is worth its line.
DROPPED = 0.1
LEAST = 2  # the first token is only context, so a shorter row predicts nothing


@dataclass(frozen=True)
class Tokens:
    """Training windows (count, seq_len) int64 on the host, and where they came from.

    `real_tokens` (those that are no padding) and `dropped_rows` (documents left out) are None when packed.
    `warnings` are for the record.
    """

    windows: np.ndarray
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

        `first` is the number of the first batch, from 0.
        """
        rng = np.random.default_rng(seed)
        order = np.empty(0, dtype=np.int64)
        while True:
            while len(order) < batch:
                order = np.concatenate([order, rng.permutation(len(self.windows))])
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
        return Tokens(windows, "random", _sha256(windows))
    documents, _, _, name, revision = parts_of(config)
    cache = None if isinstance(config, EmbeddedData) else cache
    windows, *counts = _windows(config, documents, tokenizer, name, cache)
    if (largest := windows.max()) >= vocab_size:
        raise UserError(
            f"the tokenizer gives ids up to {largest}, but the model has a vocabulary of {vocab_size}; "
            "use the tokenizer that belongs to the model"
        )
    found = Tokens(windows, name, _sha256(windows), len(documents), revision, *counts)
    return replace(found, warnings=tuple(_doubts(found, documents, tokenizer)))


def _doubts(found: Tokens, documents: Sequence[str], tokenizer: Any) -> list[str]:
    """Return what makes training on a text doubtful."""
    what, dropped = f"training text {found.name}", found.dropped_tokens
    warnings = doubts.of_tokens(found.windows.reshape(-1), tokenizer, what)
    warnings += doubts.of_letters(documents, tokenizer, what)
    total = int((found.windows != PAD).sum()) + dropped
    if dropped / total >= DROPPED:
        warnings.append(f"{what}: {dropped} of {total} tokens are left out: they fill no row of data.seq_len")
    return warnings


def split_documents(documents: Sequence[str], holdout: float) -> tuple[list[str], list[str]]:
    """Split documents into those to train on and the last share of them, which is only ever scored.

    A single document is cut at a line end near the same share, so that a novel works too.
    """
    if len(documents) > 1:
        cut = max(1, min(len(documents) - 1, round(len(documents) * (1 - holdout))))
        return list(documents[:cut]), list(documents[cut:])
    text = documents[0]
    cut = text.find("\n", int(len(text) * (1 - holdout)))
    cut = cut if cut > 0 else int(len(text) * (1 - holdout))
    return [text[:cut]], [text[cut:].strip()]


def documents_of(config: FilesData | DatasetsData) -> tuple[list[str], str, str | None]:
    """Return all documents of a user's text, with a name and a revision for the record."""
    if isinstance(config, FilesData):
        names = [existing_file(path).name for path in config.paths]
        return documents_of_files(config), ", ".join(names), None
    name = f"{config.id}/{config.name or 'default'}/{config.split}"
    return documents_of_dataset(config), name, config.revision


def encode(documents: Sequence[str], tokenizer: Any, end: bool = True) -> np.ndarray:
    """Return one int64 stream of all documents with their marks."""
    return np.concatenate([*encode_each(documents, tokenizer, end), np.empty(0, dtype=np.int64)])


def encode_each(documents: Sequence[str], tokenizer: Any, end: bool = True) -> Iterator[np.ndarray]:
    """Yield the int64 token ids of each document with its marks; UserError without a tokenizer."""
    if tokenizer is None:
        raise UserError(
            "this model has no tokenizer: put its files into the model's folder, set model.tokenizer "
            "of a shape, or data.source to random"
        )
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    last = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    for place in range(0, len(documents), TOKENISED_AT_ONCE):
        some = list(documents[place : place + TOKENISED_AT_ONCE])
        for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            yield np.asarray([*first, *ids, *last], dtype=np.int64)


def encode_once(documents: Sequence[str], tokenizer: Any, end: bool, cache: TokenCache | None) -> Blocks:
    """Return the sequences of `encode_each`, from the cache where possible."""

    def make() -> Blocks:
        return Blocks.of(list(encode_each(documents, tokenizer, end)))

    if cache is None or tokenizer is None:
        return make()
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id if end else None)
    recipe = {"layout": "documents", "marks": marks, "length": None, "limits": ()}
    return cached(cache, make, tokenizer, [encode_each], text=text_sha256(documents), **recipe)


def pack(stream: np.ndarray, seq_len: int, name: str) -> tuple[np.ndarray, int]:
    """Cut a stream into windows (count, seq_len); also return how many tokens at the end were dropped."""
    count = len(stream) // seq_len
    if count == 0:
        raise UserError(
            f"{name}: {len(stream)} tokens are fewer than one window of {seq_len}; "
            "give more text or a smaller data.seq_len"
        )
    return stream[: count * seq_len].reshape(count, seq_len), len(stream) - count * seq_len


class PaddedRows(NamedTuple):
    """Rows (count, seq_len) int64 with `PAD` after each document.

    `dropped_tokens` counts the tokens that fit no row, `real_tokens` those that are no padding, and
    `dropped_rows` the documents left out.
    """

    windows: np.ndarray
    dropped_tokens: int
    real_tokens: int
    dropped_rows: int


def ends_in_mark(config: DataConfig) -> bool:
    """Return whether documents get the end mark; examples of a task have none in the papers' code."""
    return not isinstance(config, TaskData) and bool(getattr(config, "end_token", True))


def padded(config: DataConfig) -> bool:
    """Return whether batches of this data may hold padding; packed windows never do."""
    return isinstance(config, TaskData) or getattr(config, "layout", "packed") == "rows"


def pad(
    encoded: Sequence[Sequence[int] | np.ndarray],
    seq_len: int,
    name: str,
    *,
    drop: bool = False,
    keep_last: bool = False,
) -> PaddedRows:
    """Put each document into a row; `drop` leaves out those of `seq_len` tokens and more instead of cutting.

    With `keep_last` a row that is cut still ends in its document's last token, the end mark, as when a
    tokenizer truncates. UserError when no row is left.
    """
    fitting = [ids for ids in encoded if len(ids) >= LEAST and not (drop and len(ids) >= seq_len)]
    if not fitting or seq_len < LEAST:
        raise UserError(
            f"{name}: none of {len(encoded)} texts has at least {LEAST} tokens and fits a row of {seq_len}; "
            "give other texts or a larger data.seq_len"
        )
    windows = np.full((len(fitting), seq_len), PAD, dtype=np.int64)
    for row, ids in zip(windows, fitting, strict=True):
        row[: len(ids)] = ids[:seq_len]
        if keep_last and len(ids) > seq_len:
            row[-1] = ids[-1]
    real = int((windows != PAD).sum())
    return PaddedRows(windows, sum(map(len, encoded)) - real, real, len(encoded) - len(fitting))


def token_ids(batch: np.ndarray) -> np.ndarray:
    """Return the input ids of a batch, with `PAD_TOKEN` in place of padding."""
    return np.where(batch == PAD, PAD_TOKEN, batch)


def _windows(
    config: DataConfig, documents: Sequence[str], tokenizer: Any, name: str, cache: TokenCache | None
) -> tuple[np.ndarray, int] | PaddedRows:
    """Tokenise documents, then pack or pad them."""
    end = ends_in_mark(config)
    encoded = encode_once(documents, tokenizer, end, cache)
    if not padded(config):
        return pack(encoded.tokens, config.seq_len, name)
    drop = isinstance(config, TaskData) and config.too_long == "drop"
    marked = end and tokenizer.eos_token_id is not None
    return pad(encoded.sequences, config.seq_len, name, drop=drop, keep_last=marked)


class Parts(NamedTuple):
    """The documents of a text by purpose, in order, none of which is in two; a name and a revision.

    `trained` are trained on, settings are chosen by `validation`, and `heldout` is only scored in the end.
    """

    trained: list[str]
    validation: list[str]
    heldout: list[str]
    name: str
    revision: str | None


def parts_of(config: EmbeddedData | FilesData | DatasetsData | TaskData) -> Parts:
    """Return the parts of a text; a bundled world has others to choose settings by and to score."""
    held: list[str] = []
    if isinstance(config, EmbeddedData):
        world = registry.embedded_world()
        found = world.documents(config.world, "train", config.documents)
        texts = [document.text for document in found]
        return Parts(texts, [], held, f"world-{config.world}", str(world.WORLD_VERSION))
    revision: str | None
    if isinstance(config, TaskData):
        documents, name, revision = training_texts(config)
    else:
        documents, name, revision = documents_of(config)
        documents, held = split_documents(documents, config.holdout)
    validation: list[str] = []
    if config.validation is not None:
        documents, validation = split_documents(documents, config.validation)
    return Parts(documents, validation, held, name, revision)


def _sha256(windows: np.ndarray) -> str:
    shape = str(windows.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()
