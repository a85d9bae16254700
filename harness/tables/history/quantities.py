"""Read the quantities of a record, their values, and the conditions that make values comparable."""

from __future__ import annotations

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

STATUS = Quantity("ok_share", "runs ok", "share", "status", "higher", exact=True)
PEAK = Quantity("peak_allocated_bytes", "peak memory", "bytes", "memory", "lower", exact=True)
THROUGHPUT = Quantity("tokens_per_s", "throughput", "tokens/s", "time", "higher")
WALL = Quantity("wall_s", "wall time", "s", "time", "lower")


def values(record: Record) -> dict[Quantity, float]:
    """Return all values of a run, of a failed run only its status. Values may be infinite."""
    found = {STATUS: float(record.outcome.status == "ok")}
    if record.outcome.status == "ok":
        found |= dict(_measured(record))
    return found


def _measured(record: Record) -> Iterator[tuple[Quantity, float]]:
    train = record.memory.train if record.memory else None
    if train is not None:
        yield PEAK, float(train.peak_allocated_bytes)
        for key in COMPONENTS:
            part = Quantity(
                key, f"memory: {component(key)}", "bytes", "memory", "lower", exact=True, part=True
            )
            yield part, float(getattr(train, key))
    if record.time and record.time.tokens_per_s is not None:
        yield THROUGHPUT, record.time.tokens_per_s
    if record.time and record.time.wall_s is not None and record.time.wall_s > 0:
        yield WALL, record.time.wall_s
    if record.quality is None:
        return
    for name, scored in record.quality.perplexity.items():
        name = plain(name, NAME_LENGTH)
        quantity = Quantity(f"perplexity_{name}", f"perplexity {name}", "", "perplexity", "lower")
        yield quantity, scored.perplexity
    for name, scores in record.quality.tasks.items():
        shown, version = plain(name, NAME_LENGTH), plain(scores.version, NAME_LENGTH)
        shown = shown if version in ("", "1") else f"{shown} v{version}"
        key = _accuracy(name, scores)
        yield Quantity(key, f"accuracy {shown}", "share", "accuracy", "higher"), scores.accuracy


def _accuracy(name: str, scores: Accuracy) -> str:
    """Return the key of a task's accuracy."""
    return f"accuracy_{plain(name, NAME_LENGTH)}_v{plain(scores.version, NAME_LENGTH)}"


def task(record: Record, quantity: Quantity) -> Accuracy | None:
    """Return the task of an accuracy, None where the record has none."""
    tasks = record.quality.tasks if record.quality else {}
    return next((each for name, each in tasks.items() if quantity.key == _accuracy(name, each)), None)


def measurement(kind: Kind) -> str:
    """Return the measurement whose conditions apply to a kind of quantity; memory for the status."""
    return "memory" if kind == "status" else kind


def conditions(record: Record, quantity: Quantity) -> tuple[dict[str, str], dict[str, str]]:
    """Return what must be equal within a series: among all runs, and among runs of one seed."""
    known = decides(record, measurement(quantity.kind))
    by_seed = {key: known.pop(key) for key in seeded(record) if key in known}
    return known, by_seed


def seeded(record: Record) -> tuple[str, ...]:
    """Return the conditions that depend on the seed of a run."""
    data = record.config.get("data")
    return (*BY_SEED, *RANDOM) if isinstance(data, dict) and data.get("source") == "random" else BY_SEED


def scored_text(record: Record, quantity: Quantity) -> dict[str, str]:
    """Return the text or documents that a perplexity or an accuracy was measured on."""
    if record.quality is None or quantity.kind not in ("perplexity", "accuracy"):
        return {}
    for name, scored in record.quality.perplexity.items():
        if quantity.key == f"perplexity_{plain(name, NAME_LENGTH)}":
            cut = {"text": scored.text, "tokens": scored.tokens, "windows": scored.windows}
            return {f"scored {key}": plain(str(value)) for key, value in cut.items()}
    scores = task(record, quantity)
    return {"documents": str(scores.documents)} if scores else {}
