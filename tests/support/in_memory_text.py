"""A text as tokens, made in the simplest way: all of it in memory. The streaming path is compared with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from harness.config import FilesData
from harness.engine.data import doubts
from harness.engine.data.documents import ALPACA, ALPACA_WITH_INPUT
from harness.files import from_user

PAD = -100


class Expected(NamedTuple):
    windows: np.ndarray
    sha256: str
    documents: int
    dropped_tokens: int
    real_tokens: int | None
    dropped_rows: int | None
    warnings: tuple[str, ...]


def documents(config: FilesData) -> list[str]:
    found: list[str] = []
    for path in map(from_user, config.paths):
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            found += [_filled(row) if config.template else row[config.field] for row in rows]
        else:
            found += text.split(config.separator) if config.separator else [text]
    return [document.strip() for document in found if document.strip()]


def _filled(row: dict[str, str]) -> str:
    parts = {"input": "", **row}
    return (ALPACA_WITH_INPUT if parts["input"] else ALPACA).format(**parts)


def split(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    if len(texts) > 1:
        cut = max(1, min(len(texts) - 1, round(len(texts) * (1 - share))))
        return list(texts[:cut]), list(texts[cut:])
    text = texts[0]
    cut = text.find("\n", int(len(text) * (1 - share)))
    cut = cut if cut > 0 else int(len(text) * (1 - share))
    return [text[:cut]], [text[cut:].strip()]


def parts(config: FilesData) -> tuple[list[str], list[str], list[str]]:
    trained, held = split(documents(config), config.holdout)
    validation: list[str] = []
    if config.validation is not None:
        trained, validation = split(trained, config.validation)
    return trained, validation, held


def encoded(texts: Sequence[str], tokenizer: Any, end: bool) -> list[list[int]]:
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    last = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    each = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return [[*first, *ids, *last] for ids in each]


def expected(config: FilesData, tokenizer: Any, name: str) -> Expected:
    texts = parts(config)[0]
    sequences, length = encoded(texts, tokenizer, config.end_token), config.seq_len
    total = sum(map(len, sequences))
    if config.layout == "packed":
        windows = packed(sequences, length)
        real, left_out = None, None
        dropped = total - windows.size
    else:
        fitting = [ids for ids in sequences if len(ids) >= 2]
        windows = np.full((len(fitting), length), PAD, dtype=np.int64)
        for row, ids in zip(windows, fitting, strict=True):
            row[: len(ids)] = ids[:length]
            if config.end_token and len(ids) > length:
                row[-1] = ids[-1]
        real, left_out = int((windows != PAD).sum()), len(sequences) - len(fitting)
        dropped = total - real
    sha256 = hashlib.sha256(str(windows.shape).encode() + windows.astype("<i8").tobytes()).hexdigest()
    found = _warnings(windows, texts, tokenizer, name, dropped)
    return Expected(windows, sha256, len(texts), dropped, real, left_out, tuple(found))


def packed(sequences: Sequence[list[int]], length: int) -> np.ndarray:
    stream = np.asarray([token for ids in sequences for token in ids], dtype=np.int64)
    count = len(stream) // length
    return stream[: count * length].reshape(count, length)


def _warnings(
    windows: np.ndarray, texts: Sequence[str], tokenizer: Any, name: str, dropped: int
) -> list[str]:
    what = f"training text {name}"
    found = doubts.of_tokens(windows.reshape(-1), tokenizer, what)
    sample = [text[:2000] for text in texts[:: max(1, len(texts) // 100)]]
    found += doubts.of_letters(*doubts.lost_letters(sample, tokenizer), what)
    total = int((windows != PAD).sum()) + dropped
    if dropped / total >= 0.1:
        found.append(f"{what}: {dropped} of {total} tokens are left out: they fill no row of data.seq_len")
    return found


def batches(windows: np.ndarray, batch: int, seed: int, count: int) -> list[np.ndarray]:
    """The first batches: each epoch in the order of `permutation`, end to end."""
    rng = np.random.default_rng(seed)
    epochs = -(-batch * count // len(windows))
    order = np.concatenate([rng.permutation(len(windows)) for _ in range(epochs)]).tolist()
    numbers = iter(order)
    return [windows[list(islice(numbers, batch))] for _ in range(count)]
