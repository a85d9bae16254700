"""Read the quantities of a record, their values, and the conditions that make values comparable."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from harness.record import COMPONENTS, Accuracy, Record
from harness.tables.compare.pairing import decides
from harness.tables.format import component, plain
from harness.tables.history.series import Kind, Quantity

NAME_LENGTH = 80
#: Conditions that depend on the seed: compared only between runs of one seed.
BY_SEED = ("seed",)
#: Those of training tokens, which depend on it where they are random.
RANDOM = ("data", "data tokens")

#: The text or documents that a value was measured on: names and values, none for cost.
Scored = tuple[tuple[str, object], ...]

STATUS = Quantity("ok_share", "runs ok", "share", "status", "higher", exact=True)
PEAK = Quantity("peak_allocated_bytes", "peak memory", "bytes", "memory", "lower", exact=True)
PARTS = tuple(
    Quantity(key, f"memory: {component(key)}", "bytes", "memory", "lower", exact=True, part=True)
    for key in COMPONENTS
)
THROUGHPUT = Quantity("tokens_per_s", "throughput", "tokens/s", "time", "higher")
WALL = Quantity("wall_s", "wall time", "s", "time", "lower")


def values(record: Record) -> dict[Quantity, float]:
    """Return all values of a run, of a failed run only its status. Values may be infinite."""
    return {quantity: value for quantity, (value, _) in measured(record).items()}


def measured(record: Record) -> dict[Quantity, tuple[float, Scored]]:
    """Return all values of a run, each with the text or documents that it was measured on."""
    found = {STATUS: (float(record.outcome.status == "ok"), Scored())}
    if record.outcome.status == "ok":
        found |= dict(_measured(record))
    return found


def _measured(record: Record) -> Iterator[tuple[Quantity, tuple[float, Scored]]]:
    train = record.memory.train if record.memory else None
    if train is not None:
        yield PEAK, (float(train.peak_allocated_bytes), Scored())
        for quantity in PARTS:
            yield quantity, (float(getattr(train, quantity.key)), Scored())
    if record.time and record.time.tokens_per_s is not None:
        yield THROUGHPUT, (record.time.tokens_per_s, Scored())
    if record.time and record.time.wall_s is not None and record.time.wall_s > 0:
        yield WALL, (record.time.wall_s, Scored())
    if record.quality is None:
        return
    for name, scored in record.quality.perplexity.items():
        cut = ("text", scored.text), ("tokens", scored.tokens), ("windows", scored.windows)
        yield _perplexity(name), (scored.perplexity, cut)
    for name, scores in record.quality.tasks.items():
        yield _accuracy(name, scores.version), (scores.accuracy, (("documents", scores.documents),))


@functools.lru_cache(maxsize=1 << 12)
def _perplexity(name: str) -> Quantity:
    name = plain(name, NAME_LENGTH)
    return Quantity(f"perplexity_{name}", f"perplexity {name}", "", "perplexity", "lower")


@functools.lru_cache(maxsize=1 << 12)
def _accuracy(name: str, version: str) -> Quantity:
    name, version = plain(name, NAME_LENGTH), plain(version, NAME_LENGTH)
    shown = name if version in ("", "1") else f"{name} v{version}"
    return Quantity(f"accuracy_{name}_v{version}", f"accuracy {shown}", "share", "accuracy", "higher")


def task(record: Record, quantity: Quantity) -> Accuracy | None:
    """Return the task of an accuracy, None where the record has none."""
    tasks = record.quality.tasks if record.quality else {}
    return next((each for name, each in tasks.items() if quantity == _accuracy(name, each.version)), None)


def measurement(kind: Kind) -> str:
    """Return the measurement whose conditions apply to a kind of quantity; memory for the status."""
    return "memory" if kind == "status" else kind


def conditions(record: Record, kind: Kind) -> tuple[dict[str, str], dict[str, str]]:
    """Return what must be equal within a series: among all runs, and among runs of one seed."""
    known = decides(record, measurement(kind))
    by_seed = {key: known.pop(key) for key in seeded(record) if key in known}
    return known, by_seed


def seeded(record: Record) -> tuple[str, ...]:
    """Return the conditions that depend on the seed of a run."""
    data = record.config.get("data")
    return (*BY_SEED, *RANDOM) if isinstance(data, dict) and data.get("source") == "random" else BY_SEED


def scored_text(scored: Scored) -> dict[str, str]:
    """Return the text or documents of a value as conditions."""
    return {name if name == "documents" else f"scored {name}": plain(str(value)) for name, value in scored}
