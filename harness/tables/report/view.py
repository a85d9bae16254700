"""Compare rows: their baselines, their unique names and what differs between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.record import Quality
from harness.tables.aggregate import Row, baseline_of, task_names
from harness.tables.format import DASH, plain
from harness.tables.report import notes


@dataclass(frozen=True)
class View:
    """Rows with the baseline that each may be compared with."""

    rows: tuple[Row, ...]
    baseline: str | None

    @cached_property
    def bases(self) -> list[Row | None]:
        """Return the baseline of each row."""
        return [baseline_of(row, self.rows, self.baseline) for row in self.rows]

    @property
    def versus(self) -> str:
        """Return the heading of values relative to the baseline."""
        label = plain(self.baseline or "")
        return f"vs {label}" if len(label) <= 10 else "vs baseline"

    @cached_property
    def varying(self) -> list[str]:
        """Return the traits that differ between rows apart from the method."""
        return notes.varying(self.rows)

    @cached_property
    def names(self) -> list[str]:
        """Return labels, unique by the config's id and, for one config in equal environments, by a number."""
        labels = [plain(row.label) for row in self.rows]
        if not self._unique(labels):
            repeated = Counter(labels)
            pairs = zip(labels, self.rows, strict=True)
            labels = [
                f"{label} [{row.config_id[:6]}]" if repeated[label] > 1 else label for label, row in pairs
            ]
        if not self._unique(labels):
            repeated, seen = Counter(labels), Counter[str]()
            for place, label in enumerate(labels):
                seen[label] += 1
                labels[place] = f"{label} #{seen[label]}" if repeated[label] > 1 else label
        return labels

    def _unique(self, labels: Sequence[str]) -> bool:
        """Return whether labels with the varying traits beside them are unique."""
        return len(set(zip(labels, *(self.trait(key) for key in self.varying), strict=True))) == len(labels)

    def trait(self, key: str) -> list[str]:
        """Return one trait of all rows."""
        return [notes.traits(row).get(key, DASH) for row in self.rows]

    def relative(self, key: str, combine: Callable[[float, float], float]) -> list[float | None]:
        """Combine each mean with the baseline's; None where either is missing or the baseline is zero."""
        pairs = [
            (row.mean(key), base.mean(key) if base else None)
            for row, base in zip(self.rows, self.bases, strict=True)
        ]
        return [combine(own, base) if own is not None and base else None for own, base in pairs]

    def floor(self, key: str) -> float | None:
        """Return the lowest possible perplexity on a text, where all runs agree on it."""
        return _agreed(
            score.floor
            for quality in self._qualities
            for name, score in quality.perplexity.items()
            if key == f"perplexity_{plain(name)}"
        )

    def chance(self, column: str) -> float | None:
        """Return the accuracy of random answers to a task, where all runs agree on it."""
        names = task_names(self.rows)
        return _agreed(
            score.chance
            for quality in self._qualities
            for name, score in quality.tasks.items()
            if names[name, score.version] == column
        )

    @property
    def _qualities(self) -> list[Quality]:
        return [record.quality for row in self.rows for record in row.records if record.quality]


def _agreed(values: Iterable[float | None]) -> float | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
