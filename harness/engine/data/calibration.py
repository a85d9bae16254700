"""The text that methods look at before training: some windows of it, and others to choose settings by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.config import CalibrationConfig
from harness.engine.data.tokens import Tokens
from harness.engine.data.windows import groups, shuffled, token_ids
from harness.errors import UserError
from harness.method import Batch

#: Tokens of the pieces in which windows are looked for in other texts.
PIECE = 64
#: An odd number, so that its powers have inverses; and a token that no text has.
BASE, BETWEEN = 0x9E3779B97F4A7C15, -1


@dataclass
class CalibrationText:
    """Windows of a text in an order that follows from a seed; implements `harness.method.Calibration`.

    The first windows of the order are for statistics, the last ones for choices, so no window is both.
    """

    tokens: Tokens
    wanted: CalibrationConfig
    batch: int
    seed: int
    device: torch.device
    #: The most windows that were asked for, by purpose.
    read: dict[str, int] = field(default_factory=lambda: {"sequences": 0, "validation": 0})

    @property
    def source(self) -> str:
        """The name of the text."""
        return self.tokens.name

    @property
    def count(self) -> int:
        """How many sequences `batches` yields."""
        return self.wanted.sequences

    @property
    def length(self) -> int:
        """Tokens in a sequence."""
        return int(self.tokens.windows.shape[1])

    def batches(self, count: int | None = None) -> Iterator[Batch]:
        """Yield the first `count` sequences, by default as many as the run declares; UserError for too
        few."""
        count = self.count if count is None else count
        self._refuse(count, 0)
        self.read["sequences"] = max(self.read["sequences"], count)
        return self._batches(self._order()[:count])

    def validation(self) -> Iterator[Batch]:
        """Yield the last sequences of the order, which `batches` does not; UserError for too few."""
        count = self.wanted.validation
        self._refuse(max(self.read["sequences"], self.count), count)
        self.read["validation"] = count
        return self._batches(self._order()[-count:])

    def windows(self) -> dict[str, np.ndarray]:
        """Return the windows (count, length) that were asked for, by purpose; those without any are left
        out."""
        order = self._order()
        places = {
            "sequences": order[: self.read["sequences"]],
            "validation": order[len(order) - self.read["validation"] :],
        }
        return {what: self.tokens.windows[chosen] for what, chosen in places.items() if len(chosen)}

    def _order(self) -> np.ndarray:
        return shuffled(len(self.tokens.windows), np.random.default_rng(self.seed))

    def _refuse(self, count: int, validation: int) -> None:
        have, beside = len(self.tokens.windows), f" and {validation} for validation" if validation else ""
        if count + validation > have:
            raise UserError(
                f"calibration: the text {self.source} has {have:,} sequences of {self.length:,} tokens, "
                f"fewer than {count:,}{beside}; ask for fewer (calibration.sequences, "
                "calibration.validation) or give more text"
            )

    def _batches(self, chosen: np.ndarray) -> Iterator[Batch]:
        for first in range(0, len(chosen), self.batch):
            rows = self.tokens.windows[chosen[first : first + self.batch]]
            ids, labels = (torch.from_numpy(each).to(self.device) for each in (token_ids(rows), rows))
            yield Batch(ids, labels)


def sha256_of(windows: np.ndarray) -> str:
    """Return the hash of windows in their order."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()


def repeated(windows: np.ndarray, texts: Mapping[str, Sequence[np.ndarray]]) -> dict[str, int]:
    """Return how many windows (count, length) are part of a text, by its name: most of their pieces occur in
    it.

    A text is a list of sequences of ids; what spans two of them is not found. Texts without any are left out.
    """
    size = min(PIECE, windows.shape[1])
    ends = range(size, windows.shape[1] + 1, size)
    pieces = np.stack([[_hashes(window[end - size : end], size)[0] for end in ends] for window in windows])
    found = {}
    for name, sequences in texts.items():
        known = np.empty(0, dtype=np.uint64)
        for group in groups(sequences):
            apart = [part for sequence in group for part in (sequence, [BETWEEN])]
            some = _hashes(np.concatenate(apart), size)
            some = some[np.isin(some, pieces)]  # far fewer, and this way round without sorting the text
            known = np.union1d(known, some)
        if count := int((np.isin(pieces, known).mean(axis=1) > 0.5).sum()):
            found[name] = count
    return found


def _hashes(tokens: np.ndarray, size: int) -> np.ndarray:
    """Return a 64-bit hash of every `size` tokens in a row: sum of token k times BASE to the power of k."""
    sums = np.zeros(len(tokens) + 1, dtype=np.uint64)  # all of this wraps around
    sums[1:] = np.add.accumulate(tokens.astype(np.int64).view(np.uint64) * _powers(BASE, len(tokens)))
    count = max(len(tokens) - size + 1, 0)
    found: np.ndarray = (sums[size : size + count] - sums[:count]) * _powers(pow(BASE, -1, 1 << 64), count)
    return found


def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
