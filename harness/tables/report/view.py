"""How rows stand beside each other: their baselines, their names and what differs between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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
        """The baseline of each row."""
        return [baseline_of(row, self.rows, self.baseline) for row in self.rows]

    @property
    def versus(self) -> str:
        """The heading of what is relative to the baseline."""
        label = plain(self.baseline or "")
        return f"vs {label}" if len(label) <= 10 else "vs baseline"

    @cached_property
    def varying(self) -> list[str]:
        """What differs between rows apart from the method."""
        return notes.varying(self.rows)

    @cached_property
    def names(self) -> list[str]:
        """Labels, made unique by the config's id and, for one config on equal stands, by a number."""
        labels = [plain(row.label) for row in self.rows]
        if not self.told_apart(labels):
            repeated = Counter(labels)
            pairs = zip(labels, self.rows, strict=True)
            labels = [
                f"{label} [{row.config_id[:6]}]" if repeated[label] > 1 else label for label, row in pairs
            ]
        if not self.told_apart(labels):
            repeated, seen = Counter(labels), Counter[str]()
            for place, label in enumerate(labels):
                seen[label] += 1
                labels[place] = f"{label} #{seen[label]}" if repeated[label] > 1 else label
        return labels

    def told_apart(self, labels: Sequence[str]) -> bool:
        """Whether labels with the varying traits beside them name each row once."""
        return len(set(zip(labels, *(self.trait(key) for key in self.varying), strict=True))) == len(labels)

    def trait(self, key: str) -> list[str]:
        """One trait of all rows."""
        return [notes.traits(row).get(key, DASH) for row in self.rows]

    def relative(self, key: str, combine: Callable[[float, float], float]) -> list[float | None]:
        """A measured mean beside the baseline's; None where either is missing or the baseline is zero."""
        pairs = [
            (row.mean(key), base.mean(key) if base else None)
            for row, base in zip(self.rows, self.bases, strict=True)
        ]
        return [combine(own, base) if own is not None and base else None for own, base in pairs]

    def floor(self, key: str) -> float | None:
        """The perplexity of the generator itself, where all runs agree on it."""
        values = {
            score.floor
            for row in self.rows
            for record in row.records
            for name, score in (record.quality.perplexity.items() if record.quality else ())
            if key == f"perplexity_{plain(name)}"
        }
        return values.pop() if len(values) == 1 else None

    def chance(self, column: str) -> float | None:
        """The accuracy of guessing, where all runs of a task agree on it."""
        names = task_names(self.rows)
        values = {
            score.chance
            for row in self.rows
            for record in row.records
            for name, score in (record.quality.tasks.items() if record.quality else ())
            if names[name, score.version] == column
        }
        return values.pop() if len(values) == 1 else None
