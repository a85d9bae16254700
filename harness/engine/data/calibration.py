"""The text that methods look at before training: some windows of it, and others to choose settings by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch

from harness.config import CalibrationConfig
from harness.engine.data.tokens import Tokens, token_ids
from harness.errors import UserError
from harness.method import Batch

#: Tokens of the pieces in which windows are looked for in other texts.
PIECE = 64


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
        return np.random.default_rng(self.seed).permutation(len(self.tokens.windows))

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
    pieces = [_pieces(window) for window in windows]
    found = {}
    for name, sequences in texts.items():
        whole = [np.ascontiguousarray(sequence, dtype="<i8").tobytes() for sequence in sequences]
        shares = (fmean(any(_aligned(text, part) for text in whole) for part in parts) for parts in pieces)
        if count := sum(share > 0.5 for share in shares):
            found[name] = count
    return found


def _pieces(window: np.ndarray) -> list[bytes]:
    """Return the whole pieces of a window, or all of a shorter one."""
    numbers = np.ascontiguousarray(window, dtype="<i8")
    ends = range(PIECE, max(len(numbers), PIECE) + 1, PIECE)
    return [numbers[end - PIECE : end].tobytes() for end in ends]


def _aligned(text: bytes, part: bytes) -> bool:
    """Return whether the numbers of 8 bytes of a part occur one after the other in a text."""
    place = text.find(part)
    while place >= 0 and place % 8:
        place = text.find(part, place + 1)
    return place >= 0
