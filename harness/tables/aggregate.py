"""Group records into rows, and compute the mean and spread of what the runs of a row measured.

A row is one configuration with one content of its inputs in one environment. Runs of different weights, texts
or plug-ins under one name are never averaged, nor are those of different devices, meters, protocol versions
or versions of the numerical packages.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from harness.inputs import known_inputs
from harness.record import COMPONENTS, Accuracy, Record
from harness.tables.format import plain

#: Facts about the prepared model that get a column, whichever method reports them, and the column's heading.
FACTS = {
    "attempted_err": "target rank reduction",
    "measured_err": "achieved rank reduction",
    "parameter_ratio": "parameter ratio",
    "flop_ratio": "FLOP ratio",
}
#: Packages whose version can move a number.
NUMERICAL = ("torch", "transformers", "lm-eval")
#: Keys of the config that a row is not compared by: they name the row, or do not change the work.
_OWN = ("method", "seed", "repeat", "label", "save_weights")
_RATE = "train.lr"

Environment = Mapping[str, str]
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return the items by key; keys and the items of each keep their order."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


@dataclass(frozen=True)
class Stat:
    """Mean, sample standard deviation (None for fewer than two finite values) and number of values."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        """Summarise at least one value; an infinite value makes an infinite mean without a spread."""
        finite = all(map(math.isfinite, values))
        return cls(mean(values), spread(values) if finite and len(values) > 1 else None, len(values))


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value, also where their sum is larger than any float."""
    if not all(map(math.isfinite, values)):
        return sum(values)
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return statistics.mean(values)  # by exact fractions, which takes longer


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation of at least two finite values; infinite where it overflows."""
    if values.count(values[0]) == len(values):
        return 0.0  # as often for bytes; the way by exact fractions is long
    try:
        return statistics.stdev(values)
    except OverflowError:
        return math.inf


@dataclass
class Row:
    """The runs of one configuration on equal inputs in one environment, with what is known of both."""

    config_id: str
    environment: dict[str, str]
    records: list[Record] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Stat] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return the name that the suite gives to the configuration."""
        return self.records[0].label

    @cached_property
    def seeds(self) -> list[int]:
        """Return every seed that has a record, failed ones included."""
        return sorted({record.seed for record in self.records})

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the resolved config apart from method and seed: dotted key -> text."""
        return dict(flat({key: value for key, value in self.records[0].config.items() if key not in _OWN}))

    def section(self, *names: str) -> dict[str, str]:
        """Return the settings of some sections of the config."""
        return {key: value for key, value in self.settings.items() if key.split(".")[0] in names}

    def mean(self, key: str) -> float | None:
        """Return the mean of one measured quantity, None where it was not measured."""
        stat = self.stats.get(key)
        return stat.mean if stat else None


def rows(records: Iterable[Record], order: Sequence[str] = ()) -> list[Row]:
    """Group records into rows: in the order of the config ids given, then by label."""
    places = {config_id: place for place, config_id in reversed(list(enumerate(order)))}
    found = _group(records)
    found.sort(key=lambda row: (places.get(row.config_id, len(order)), row.label, row.config_id))
    tasks = task_names(found)
    for row in found:
        row.stats = _summary(row.records, tasks)
    return found


def newest(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows without those of a configuration whose inputs have changed since, and these.

    Of several contents of the inputs the one stays that has the most seeds with status `ok`, then the one
    that ran last.
    """
    of_config = grouped(rows, lambda row: row.config_id)
    shown, older = list[Row](), list[Row]()
    for row in rows:
        others = [
            other
            for other in of_config[row.config_id]
            if agree(other.environment, row.environment) and not agree(other.inputs, row.inputs)
        ]
        outdated = any(_currency(other) > _currency(row) for other in others)
        (older if outdated else shown).append(row)
    return shown, older


def _currency(row: Row) -> tuple[int, str]:
    good = [record for record in row.records if record.outcome.status == "ok"]
    return len({record.seed for record in good}), max((r.started_at or "" for r in row.records), default="")


def baseline_of(row: Row, baselines: Sequence[Row]) -> Row | None:
    """Return the row, of those with the baseline's label, of the same environment, model and data.

    Model and data are compared by content, too. Of several rows, the one with the same settings but for the
    learning rate, which each row may have its own of; in a grid of rates the one with the same. None where
    that leaves none or more than one.
    """
    found = [
        other
        for other in baselines
        if agree(other.environment, row.environment)
        and agree(other.inputs, row.inputs)
        and other.section("model", "data") == row.section("model", "data")
    ]
    if len(found) > 1:
        own = _but_for_rate(row)
        found = [other for other in found if _but_for_rate(other) == own]
    if len(found) > 1:
        found = [other for other in found if other.settings.get(_RATE) == row.settings.get(_RATE)]
    return found[0] if len(found) == 1 else None


def _but_for_rate(row: Row) -> dict[str, str]:
    own = row.settings.items()
    return {key: text for key, text in own if key != _RATE and not key.startswith("tuning.")}


def agree(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Return whether no field differs that both know."""
    return first.items() <= second.items() or all(
        second[key] == value for key, value in first.items() if key in second
    )


def methods(record: Record) -> list[str]:
    """Return the names of the stack of methods in a run's config."""
    stack = record.config.get("method")
    parts = stack if isinstance(stack, (list, tuple)) else ()
    return [str(part["name"]) for part in parts if isinstance(part, dict) and "name" in part]


def environment_of(record: Record) -> Environment:
    """Return what must be equal before two values are compared; a run that failed early knows only a part.

    It is one object for many records.
    """
    here, meter = record.environment, record.memory.meter if record.memory else None
    device = (here.device, here.cpu, here.cpu_threads, here.driver) if here else None
    packages = tuple(here.packages.items()) if here else ()
    return _environment(record.tier, meter, device, packages, tuple(record.protocols.items()))


@functools.lru_cache(maxsize=1 << 12)
def _environment(
    tier: str,
    meter: str | None,
    device: tuple[str, str, int, str | None] | None,
    packages: tuple[tuple[str, str], ...],
    protocols: tuple[tuple[str, int], ...],
) -> Mapping[str, str]:
    known: dict[str, Any] = {"tier": tier, "meter": meter}
    if device:
        name, cpu, threads, driver = device
        known |= {"device": name, "cpu": cpu if cpu != name else None, "threads": threads, "driver": driver}
        versions = {package.lower().replace("_", "-"): version for package, version in packages}
        known |= {package: versions.get(package) for package in NUMERICAL}
    known |= {f"{name} protocol": version for name, version in sorted(protocols)}
    return {plain(key): plain(str(value)) for key, value in known.items() if value is not None}


def task_names(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return the column of each task and version; the version is named only where a task has several."""
    found = dict.fromkeys(
        (task, accuracy.version)
        for row in rows
        for record in row.records
        for task, accuracy in (record.quality.tasks.items() if record.quality else ())
    )
    versions = Counter(task for task, _ in found)
    return {key: plain(key[0] if versions[key[0]] == 1 else f"{key[0]} v{key[1]}") for key in found}


def binomial_stderr(accuracy: Accuracy) -> float:
    """Return the recorded standard error of an accuracy, else the binomial one, sqrt(p (1 - p) / n)."""
    if accuracy.stderr is not None:
        return accuracy.stderr
    share = accuracy.correct / accuracy.documents
    return math.sqrt(share * (1 - share) / accuracy.documents)


# --------------------------------------------------------------------------------------- grouping
def _group(records: Iterable[Record]) -> list[Row]:
    """Join runs of one configuration whose inputs and environments agree; the same run twice is two rows."""
    found = [(environment_of(record), record) for record in records]
    joined: list[Row] = []
    of_config: dict[str, list[tuple[Row, set[str]]]] = {}
    for known, record in _ordered(found):
        inputs = known_inputs(record)
        several = of_config.setdefault(record.config_id, [])
        for row, ids in several:
            new = record.run_id not in ids
            if new and agree(known, row.environment) and agree(inputs, row.inputs):
                break
        else:
            row, ids = Row(record.config_id, {}), set[str]()
            several.append((row, ids))
            joined.append(row)
        row.records.append(record)
        row.environment |= known
        row.inputs |= inputs
        ids.add(record.run_id)
    for row in joined:
        row.records.sort(key=lambda record: (record.seed, record.repeat))
    return joined


def _ordered(found: Sequence[tuple[Environment, Record]]) -> Iterator[tuple[Environment, Record]]:
    """Yield records by environment and id; several records of one run by all that they say."""
    texts = {id(environment): str(environment) for environment, _ in found}
    for _, several in sorted(grouped(found, lambda pair: (texts[id(pair[0])], pair[1].run_id)).items()):
        yield from sorted(several, key=lambda pair: repr(pair[1])) if len(several) > 1 else several


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the dotted keys of a nested config with their values as text, unset ones left out."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flat(item, f"{prefix}{key}.")
        elif item not in (None, "", [], ()):
            yield plain(f"{prefix}{key}"), plain(_text(item))


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return " ".join(_text(item) for item in value.values() if item is not None)
    return value if isinstance(value, str) and value.strip() else json.dumps(value)


# ------------------------------------------------------------------------------------- statistics
def _summary(records: Sequence[Record], tasks: Mapping[tuple[str, str], str]) -> dict[str, Stat]:
    """Summarise every measured value: quality over seeds, memory and speed over runs."""
    # Repeats of a seed are no new evidence about quality, so they count once.
    quality: dict[int, list[dict[str, float]]] = {}
    cost: dict[tuple[int, int], list[dict[str, float]]] = {}
    names: dict[str, None] = {}
    for record in records:
        values, spent = _quality(record, tasks), _cost(record)
        quality.setdefault(record.seed, []).append(values)
        cost.setdefault((record.seed, record.repeat), []).append(spent)
        names |= dict.fromkeys((*values, *spent))
    found = _columns(quality.values()) | _columns(cost.values())
    return {name: Stat.of(found[name]) for name in names}


def _columns(groups: Iterable[Sequence[Mapping[str, float]]]) -> dict[str, list[float]]:
    """Return the values of each name, one for each group of records that has it: their mean."""
    found: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        joined = group[0]
        if len(group) > 1:
            names = dict.fromkeys(name for values in group for name in values)
            joined = {name: mean([values[name] for values in group if name in values]) for name in names}
        for name, value in joined.items():
            found[name].append(value)
    return found


def _quality(record: Record, tasks: Mapping[tuple[str, str], str]) -> dict[str, float]:
    if record.quality is None:
        return {}
    values = {f"perplexity_{plain(n)}": p.perplexity for n, p in record.quality.perplexity.items()}
    scores = {tasks[name, score.version]: score for name, score in record.quality.tasks.items()}
    errors = {name: binomial_stderr(score) for name, score in scores.items()}
    values |= {f"accuracy_{name}": score.accuracy for name, score in scores.items()}
    values |= {f"accuracy_stderr_{name}": error for name, error in errors.items()}
    if len(scores) == len(tasks) > 1:  # a mean over fewer tasks would not compare
        values["mean_accuracy"] = math.fsum(score.accuracy for score in scores.values()) / len(scores)
        values["mean_accuracy_stderr"] = math.hypot(*errors.values()) / len(scores)
    return values


def _cost(record: Record) -> dict[str, float]:
    values: dict[str, float] = {}
    if record.memory and record.memory.train:
        values |= {name: getattr(record.memory.train, name) for name in ("peak_allocated_bytes", *COMPONENTS)}
    if record.time:
        values |= {f"{phase}_s": seconds for phase, seconds in record.time.phase_s.items()}
        measured = {name: getattr(record.time, name) for name in ("wall_s", "tokens_per_s", "mfu")}
        values |= {name: value for name, value in measured.items() if value is not None}
    if record.parameters:
        values |= {"parameters": record.parameters.total, "trainable_parameters": record.parameters.trainable}
        reports = [part for part in record.parameters.facts.values() if isinstance(part, dict)]
        for report in reports:  # the last method of a stack has seen the model that is trained
            values |= {key: report[key] for key in FACTS if isinstance(report.get(key), (int, float))}
    return {name: float(value) for name, value in values.items()}
