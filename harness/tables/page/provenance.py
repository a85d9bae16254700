"""Describe how each number of a page was made: measurement protocol, version and inputs, from its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from harness.record import Accuracy, Perplexity, Record, Time, TrainMemory
from harness.tables.aggregate import task_names
from harness.tables.format import DASH, Column, Table, plain
from harness.tables.report.view import View

TITLE = "How each number was made"
_METERS = {
    "live": "bytes of live tensor storages, counted at every operation on CPU: exact and repeatable",
    "cuda": "peak of CUDA's caching allocator (max_memory_allocated)",
}
_SEVERAL = 3  # values named one by one; more are counted


def made(view: View) -> Table:
    """Return one line per quantity: its definition, protocol version, and the facts in the records."""
    records = [record for row in view.rows for record in row.records]
    lines = [*_perplexities(records), *_accuracies(view, records), *_costs(records)]
    heads = ("quantity", "definition", "protocol", "in these records")
    columns = [
        Column(head, tuple(line[place] for line in lines), numeric=False) for place, head in enumerate(heads)
    ]
    return Table(TITLE, tuple(columns[:1]), tuple(columns[1:]))


Line = tuple[str, str, str, str]


def _perplexities(records: Sequence[Record]) -> list[Line]:
    found: dict[str, list[Perplexity]] = {}
    for record in records:
        for name, score in record.quality.perplexity.items() if record.quality else ():
            found.setdefault(name, []).append(score)
    lines = []
    for name, scores in found.items():
        what = "exp of the summed negative log-likelihood (nats) over the number of tokens"
        if any(score.batches for score in scores):
            what = "exp of a mean of batch means, as in the repeated protocol"
        facts: list[tuple[str, Callable[[Perplexity], object]]] = [
            ("text", lambda score: score.text),
            ("tokens", lambda score: score.tokens),
            ("windows", lambda score: score.windows),
            ("context", lambda score: score.context),
            ("tokens dropped", lambda score: score.dropped_tokens),
            ("floor", lambda score: score.floor and f"{score.floor:.4f}"),
        ]
        said = _joined((label, [read(score) for score in scores]) for label, read in facts)
        lines.append((f"perplexity, {plain(name)}", what, _version(records, "perplexity"), said))
    return lines


def _accuracies(view: View, records: Sequence[Record]) -> list[Line]:
    called = task_names(view.rows)
    found: dict[str, list[Accuracy]] = {}
    for record in records:
        for name, score in record.quality.tasks.items() if record.quality else ():
            found.setdefault(called[name, score.version], []).append(score)
    lines = []
    for name, scores in found.items():
        said = _joined(
            (
                ("documents", [score.documents for score in scores]),
                ("version of the task", [score.version for score in scores]),
                ("chance", [score.chance for score in scores]),
                ("unreadable answers", [score.unparsable for score in scores]),
            )
        )
        what = "right answers over all documents; an unreadable answer is wrong"
        lines.append((f"accuracy, {name}", what, _version(records, "accuracy"), said))
    return lines


def _costs(records: Sequence[Record]) -> list[Line]:
    lines = []
    known = [record.memory for record in records if record.memory and record.memory.train]
    for meter in dict.fromkeys(memory.meter for memory in known):
        windows: list[TrainMemory] = [m.train for m in known if m.train and m.meter == meter]
        what = f"most bytes at once in a window of steady training steps: {_METERS[meter]}"
        steps = [f"{window.window_first_step} to {window.window_last_step}" for window in windows]
        refreshes = [window.refreshes_in_window for window in windows]
        said = _joined((("steps", steps), ("refreshes in the window", refreshes)))
        lines.append((f"peak memory, {meter}", what, _version(records, "memory"), said))
    clocks: list[Time] = [r.time for r in records if r.time and r.time.tokens_per_s is not None]
    if clocks:
        what = (
            "tokens of one period over its time, from the medians of plain steps and steps with a refresh; "
            "timed without a memory meter"
        )
        timed = [len(clock.step_s) or None for clock in clocks]
        said = _joined((("timed steps", timed), ("tokens per step", [c.tokens_per_step for c in clocks])))
        lines.append(("tokens/s", what, _version(records, "time"), said))
    return lines


def _version(records: Sequence[Record], name: str) -> str:
    versions = sorted({record.protocols[name] for record in records if name in record.protocols})
    return f"{name} {', '.join(map(str, versions))}"


def _joined(facts: Iterable[tuple[str, Sequence[object]]]) -> str:
    """Write `tokens 1,000; windows 8`: the distinct known values, counted where they are many."""
    said = []
    for label, values in facts:
        distinct = list(dict.fromkeys(_value(value) for value in values if value is not None))
        if len(distinct) > _SEVERAL:
            said.append(f"{label}: {len(distinct)} different values")
        elif distinct:
            said.append(f"{label} {' or '.join(distinct)}")
    return "; ".join(said) or DASH


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(str(value), 90)
