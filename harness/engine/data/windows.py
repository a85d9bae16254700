"""Cut tokens into windows of one length, or lay each document into a row of its own.

Windows of a stored text are read when they are asked for, so that no more than a batch is in memory.
Padding is written as `PAD`, so that one array of rows serves as input and as labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from harness.engine.data.shards import Stored
from harness.errors import UserError

PAD = -100  # the default ignore_index of torch.nn.functional.cross_entropy
#: The input id in place of padding: `<unk>` of LLaMA's tokenizer, `<pad>` of T5's, as in the papers.
PAD_TOKEN = 0
LEAST = 2  # the first token is only context, so a shorter row predicts nothing
#: Tokens of a text that are looked at together.
TOGETHER = 1 << 20


class Windows(Sequence[np.ndarray]):
    """Windows (count, length) int64 of a stored text, indexed as an array by number, slice or numbers."""

    dtype = np.dtype(np.int64)

    def __init__(self, stored: Stored, count: int, length: int) -> None:
        self.stored, self.shape = stored, (count, length)

    @property
    def size(self) -> int:
        """Return the number of tokens, padding included."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, chosen: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, chosen: Any) -> Any: ...

    def __getitem__(self, chosen: Any) -> Any:
        """Return a window (length,), or several (chosen, length)."""
        if isinstance(chosen, slice):
            places = np.arange(*chosen.indices(len(self)))
        else:
            places = np.atleast_1d(np.asarray(chosen, dtype=np.int64))
            places = np.where(places < 0, places + len(self), places)
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"no window {chosen} of {len(self)}")
        found = np.empty((len(places), self.shape[1]), dtype=np.int64)
        self._fill(found, places)
        return found if isinstance(chosen, slice) or np.ndim(chosen) else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def _fill(self, rows: np.ndarray, places: np.ndarray) -> None:
        """Write the windows at these places into rows."""
        firsts = places * self.shape[1]
        numbers = np.searchsorted(self.stored.starts, firsts, side="right") - 1
        for row, first, number in zip(rows, firsts.tolist(), numbers.tolist(), strict=True):
            self.stored.fill(row, first, number)


class Rows(Windows):
    """Windows of a document each, with `PAD` after it; those of too few tokens, or too many, are left out."""

    def __init__(self, stored: Stored, length: int, most: int | None, keep_last: bool) -> None:
        self._most, self._keep_last = most, keep_last
        counts = [int(self._fits(lengths).sum()) for lengths in stored.lengths()]
        self._before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        super().__init__(stored, int(self._before[-1]), length)

    def _fits(self, lengths: np.ndarray) -> np.ndarray:
        fits: np.ndarray = lengths >= LEAST
        return fits if self._most is None else fits & (lengths <= self._most)

    def real_tokens(self) -> int:
        """Return the number of tokens that are no padding."""
        fitting = (lengths[self._fits(lengths)] for lengths in self.stored.lengths())
        return sum(int(np.minimum(lengths, self.shape[1]).sum()) for lengths in fitting)

    def _fill(self, rows: np.ndarray, places: np.ndarray) -> None:
        rows[:] = PAD
        numbers = np.searchsorted(self._before, places, side="right") - 1
        for number in np.unique(numbers).tolist():
            shard = self.stored.shards[number]
            documents = places[numbers == number] - self._before[number]
            if len(shard.ends) != self._before[number + 1] - self._before[number]:
                lengths = np.diff(shard.ends.astype(np.int64), prepend=0)
                documents = np.flatnonzero(self._fits(lengths))[documents]
            ends = shard.ends[documents].astype(np.int64)
            firsts = np.where(documents > 0, shard.ends[documents - 1], 0).astype(np.int64)
            where = np.flatnonzero(numbers == number)
            for place, first, end in zip(where.tolist(), firsts.tolist(), ends.tolist(), strict=True):
                row, ids = rows[place], shard.tokens[first : min(end, first + self.shape[1])]
                row[: len(ids)] = ids
                if self._keep_last and end - first > len(row):
                    row[-1] = shard.tokens[end - 1]
                self.stored.note(number, row.nbytes)


class PaddedRows(NamedTuple):
    """Rows (count, seq_len) int64 with `PAD` after each document.

    `dropped_tokens` counts the tokens that fit no row, `real_tokens` those that are no padding, and
    `dropped_rows` the documents left out.
    """

    windows: Rows
    dropped_tokens: int
    real_tokens: int
    dropped_rows: int


def pack(stream: np.ndarray, seq_len: int, name: str) -> tuple[np.ndarray, int]:
    """Cut a stream into windows (count, seq_len); also return how many tokens at the end were dropped."""
    count = _full(len(stream), seq_len, name)
    return stream[: count * seq_len].reshape(count, seq_len), len(stream) - count * seq_len


def packed(stored: Stored, seq_len: int, name: str) -> tuple[Windows, int]:
    """Do the same with documents that are stored, joined in their order."""
    count = _full(stored.tokens, seq_len, name)
    return Windows(stored, count, seq_len), stored.tokens - count * seq_len


def _full(tokens: int, seq_len: int, name: str) -> int:
    """Return how many windows are full; UserError where none is."""
    if tokens < seq_len:
        raise UserError(
            f"{name}: {tokens} tokens are fewer than one window of {seq_len}; "
            "give more text or a smaller data.seq_len"
        )
    return tokens // seq_len


def pad(
    stored: Stored, seq_len: int, name: str, *, drop: bool = False, keep_last: bool = False
) -> PaddedRows:
    """Put each document into a row; `drop` leaves out those of `seq_len` tokens and more instead of cutting.

    With `keep_last` a row that is cut still ends in its document's last token, the end mark, as when a
    tokenizer truncates. UserError when no row is left.
    """
    windows = Rows(stored, seq_len, seq_len - 1 if drop else None, keep_last)
    if not len(windows) or seq_len < LEAST:
        raise UserError(
            f"{name}: none of {stored.documents} texts has at least {LEAST} tokens and fits a row of "
            f"{seq_len}; give other texts or a larger data.seq_len"
        )
    real = windows.real_tokens()
    return PaddedRows(windows, stored.tokens - real, real, stored.documents - len(windows))


def token_ids(batch: np.ndarray) -> np.ndarray:
    """Return the input ids of a batch, with `PAD_TOKEN` in place of padding."""
    return np.where(batch == PAD, PAD_TOKEN, batch)


def shuffled(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers below `count` as `rng.permutation` does, in half the memory: 4 bytes each."""
    order = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
    rng.shuffle(order)
    return order


def counts_of(sequences: Iterable[np.ndarray]) -> np.ndarray:
    """Return how often each id occurs in sequences of ids (largest + 1,); negative ids are padding."""
    counts = np.zeros(0, dtype=np.int64)
    for group in groups(sequences):
        ids = np.concatenate(group)
        more = np.bincount(ids[ids >= 0], minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return counts


def groups(sequences: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield sequences of ids in order, so many together that it is worth a call and takes little memory."""
    some: list[np.ndarray] = []
    size = 0
    for sequence in sequences:
        some.append(np.asarray(sequence, dtype=np.int64))
        size += len(sequence)
        if size >= TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def sha256_and_counts(windows: np.ndarray | Windows) -> tuple[str, np.ndarray]:
    """Return the hash of windows (count, length), their shape included, and `counts_of` them."""
    digest = hashlib.sha256(str(windows.shape).encode())

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, TOGETHER // windows.shape[1])
        for first in range(0, len(windows), step):
            block = np.ascontiguousarray(windows[first : first + step], dtype="<i8").reshape(-1)
            digest.update(block.data)
            yield block

    counts = counts_of(blocks())
    return digest.hexdigest(), counts
