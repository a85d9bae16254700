"""Describe how each number of a page was made: measurement protocol, version and inputs, from its records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.record import Record
from harness.series import timed
from harness.tables.aggregate import grouped
from harness.tables.format import DASH, plain
from harness.tables.report.view import View

TITLE = "How each number was made"
_METERS = {
    "live": "bytes of live tensor storages, counted at every operation on CPU: exact and repeatable",
    "cuda": "peak of CUDA's caching allocator (max_memory_allocated)",
}
_SEVERAL = 3  # values named one by one; more are counted


Line = tuple[str, str, str, str]
HEADS: Line = ("quantity", "definition", "protocol", "in these records")


def made(view: View) -> list[Line]:
    """Return one line per quantity: its definition, protocol version, and the facts in the records."""
    records = [record for row in view.rows for record in row.records]
    return [*_perplexities(records), *_accuracies(view, records), *_costs(records)]


def _perplexities(records: Sequence[Record]) -> Iterator[Line]:
    pairs = [pair for record in records if record.quality for pair in record.quality.perplexity.items()]
    for name, several in grouped(pairs, lambda pair: pair[0]).items():
        scores = [score for _, score in several]
        what = "exp of the summed negative log-likelihood (nats) over the number of tokens"
        if any(score.batches for score in scores):
            what = "exp of a mean of batch means, as in the repeated protocol"
        facts = _joined(
            ("text", [score.text for score in scores]),
            ("tokens", [score.tokens for score in scores]),
            ("windows", [score.windows for score in scores]),
            ("context", [score.context for score in scores]),
            ("tokens dropped", [score.dropped_tokens for score in scores]),
            ("floor", [score.floor and f"{score.floor:.4f}" for score in scores]),
        )
        yield f"perplexity, {plain(name)}", what, _version(records, "perplexity"), facts


def _accuracies(view: View, records: Sequence[Record]) -> Iterator[Line]:
    columns = view.task_names
    pairs = [pair for record in records if record.quality for pair in record.quality.tasks.items()]
    for name, several in grouped(pairs, lambda pair: columns[pair[0], pair[1].version]).items():
        scores = [score for _, score in several]
        what = "right answers over all documents; an unreadable answer is wrong"
        facts = _joined(
            ("documents", [score.documents for score in scores]),
            ("version of the task", [score.version for score in scores]),
            ("chance", [score.chance for score in scores]),
            ("unreadable answers", [score.unparsable for score in scores]),
        )
        yield f"accuracy, {name}", what, _version(records, "accuracy"), facts


def _costs(records: Sequence[Record]) -> Iterator[Line]:
    known = [record.memory for record in records if record.memory and record.memory.train]
    for meter in dict.fromkeys(memory.meter for memory in known):
        windows = [memory.train for memory in known if memory.train and memory.meter == meter]
        what = f"most bytes at once in a window of steady training steps: {_METERS[meter]}"
        facts = _joined(
            ("steps", [f"{window.window_first_step} to {window.window_last_step}" for window in windows]),
            ("refreshes in the window", [window.refreshes_in_window for window in windows]),
        )
        yield f"peak memory, {meter}", what, _version(records, "memory"), facts
    clocks = [record.time for record in records if record.time and record.time.tokens_per_s is not None]
    if clocks:
        what = (
            "tokens of one period over its time, from the medians of plain steps and steps with a refresh; "
            "timed without a memory meter"
        )
        facts = _joined(
            ("timed steps", [timed(clock) or None for clock in clocks]),
            ("tokens per step", [clock.tokens_per_step for clock in clocks]),
        )
        yield "tokens/s", what, _version(records, "time"), facts


def _version(records: Sequence[Record], name: str) -> str:
    versions = sorted({record.protocols[name] for record in records if name in record.protocols})
    return f"{name} {', '.join(map(str, versions))}"


def _joined(*facts: tuple[str, Sequence[object]]) -> str:
    """Write `tokens 1,000; windows 8`: the distinct known values, counted where they are many."""
    texts = []
    for label, values in facts:
        distinct = list(dict.fromkeys(_value(value) for value in values if value is not None))
        if len(distinct) > _SEVERAL:
            texts.append(f"{label}: {len(distinct)} different values")
        elif distinct:
            texts.append(f"{label} {' or '.join(distinct)}")
    return "; ".join(texts) or DASH


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(str(value), 90)
