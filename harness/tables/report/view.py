"""Compare rows: their baselines, their unique names and what differs between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

from harness.record import Record
from harness.tables.aggregate import Row, baseline_of, task_names
from harness.tables.format import DASH, plain
from harness.tables.report.targets import Goal, goals
from harness.tables.report.verdicts import PERPLEXITY, Harm, Verdict, harmed, verdicts


@dataclass(frozen=True)
class View:
    """Rows with the baseline that each may be compared with, and perplexities to reach, by protocol."""

    rows: tuple[Row, ...]
    baseline: str | None
    targets: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def bases(self) -> list[Row | None]:
        """Return the baseline of each row."""
        baselines = [row for row in self.rows if row.label == self.baseline]
        return [baseline_of(row, baselines) for row in self.rows]

    @property
    def versus(self) -> str:
        """Return the heading of values relative to the baseline."""
        label = plain(self.baseline or "")
        return f"vs {label}" if len(label) <= 10 else "vs baseline"

    @cached_property
    def records(self) -> list[Record]:
        """Return the records of all rows."""
        return [record for row in self.rows for record in row.records]

    @cached_property
    def traits(self) -> list[dict[str, str]]:
        """Return the traits of each row."""
        return [traits(row) for row in self.rows]

    @cached_property
    def varying(self) -> list[str]:
        """Return the traits that differ between rows; what a failed run did not learn is no difference."""
        keys = dict.fromkeys(key for described in self.traits for key in described)
        settings = {key for row in self.rows for key in row.settings}
        differs = []
        for key in keys:  # an absent setting is a value, an unknown environment is not
            values = {each.get(key) for each in self.traits if key in settings or key in each}
            differs += [key] if len(values) > 1 else []
        explained = any(key in ("train.steps", "train.batch", "train.grad_accum") for key in differs)
        return [key for key in differs if not ((key == "tokens" and explained) or key.startswith("tuning."))]

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
            repeated, numbers = Counter(labels), {text: count(1) for text in labels}
            labels = [f"{text} #{next(numbers[text])}" if repeated[text] > 1 else text for text in labels]
        return labels

    @cached_property
    def full_names(self) -> list[str]:
        """Return the names, where they are not unique with what differs beside it."""
        if len(set(self.names)) == len(self.names):
            return self.names
        traits = zip(*(self.trait(key) for key in self.varying), strict=True)
        return [
            f"{name} ({', '.join(f'{key} {text}' for key, text in zip(self.varying, each, strict=True))})"
            for name, each in zip(self.names, traits, strict=True)
        ]

    def _unique(self, labels: Sequence[str]) -> bool:
        """Return whether labels with the varying traits beside them are unique."""
        return len(set(zip(labels, *(self.trait(key) for key in self.varying), strict=True))) == len(labels)

    def trait(self, key: str) -> list[str]:
        """Return one trait of all rows."""
        return [described.get(key, DASH) for described in self.traits]

    def relative(self, key: str, combine: Callable[[float, float], float]) -> list[float | None]:
        """Combine each mean with the baseline's; None where either is missing or the baseline is zero."""
        pairs = [
            (row.mean(key), base.mean(key) if base else None)
            for row, base in zip(self.rows, self.bases, strict=True)
        ]
        return [combine(own, base) if own is not None and base else None for own, base in pairs]

    @cached_property
    def headline(self) -> str | None:
        """Return the key of the first perplexity, by which rows are judged."""
        return next((key for row in self.rows for key in row.stats if key.startswith(PERPLEXITY)), None)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Return the verdict on each row."""
        return verdicts(self.rows, self.bases, self.headline or "")

    @cached_property
    def goals(self) -> list[Goal]:
        """Return for each target when the rows reached it."""
        return goals(self.rows, self.bases, self.targets)

    @cached_property
    def harmed(self) -> list[Harm | None]:
        """Return for each row that is worse than an untrained one by which perplexity, and than which row."""
        return list(harmed(self.rows))

    @cached_property
    def task_names(self) -> dict[tuple[str, str], str]:
        """Return the column of each task and version."""
        return task_names(self.rows)

    @cached_property
    def floors(self) -> dict[str, float]:
        """Return the lowest possible perplexity on each text, by its key, where all runs agree on it."""
        found = dict.fromkeys(
            (name, score.floor)
            for record in self.records
            for name, score in (record.quality.perplexity.items() if record.quality else ())
        )
        return _agreed((f"perplexity_{plain(name)}", floor) for name, floor in found)

    @cached_property
    def chances(self) -> dict[str, float]:
        """Return the accuracy of random answers to each task, by its column, where all runs agree on it."""
        return _agreed(
            (self.task_names[name, score.version], score.chance)
            for record in self.records
            for name, score in (record.quality.tasks.items() if record.quality else ())
        )


def traits(row: Row) -> dict[str, str]:
    """Return what describes a row: its settings, its environment and the tokens of its finished runs."""
    done = [record for record in row.records if record.outcome.status == "ok"]
    tokens = {record.training.tokens for record in done if record.training}
    return {**row.settings, **row.environment, **({"tokens": listed(sorted(tokens))} if tokens else {})}


def listed(numbers: Iterable[int]) -> str:
    """Return numbers as text."""
    return ", ".join(map(str, numbers))


def _agreed(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Return the values that are equal wherever their key is, and known."""
    found: dict[str, set[float | None]] = {}
    for key, value in values:
        found.setdefault(key, set()).add(value)
    return {
        key: known
        for key, several in found.items()
        if len(several) == 1 and (known := several.pop()) is not None
    }
