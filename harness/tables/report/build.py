"""Build the report of a suite from its records.

The same records always make the same bytes, so that generated tables can be checked for drift. The
CSV holds every value in bytes, seconds or shares of one, one line per row; the other forms hold small
tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.inputs import Inputs
from harness.record import Record
from harness.tables.aggregate import FACTS, Row, newest
from harness.tables.aggregate import rows as rows_of
from harness.tables.format import Table, plain
from harness.tables.report import notes as describe
from harness.tables.report.at_scale import AtScale
from harness.tables.report.sections import ENDINGS, GLANCE, sections
from harness.tables.report.view import View


@dataclass(frozen=True)
class Report:
    """Tables of text for people, `lines` with all numbers for the CSV, and the notes beside both.

    All text is plain; a renderer escapes it. `answer` is one to the question, `overview` the tables that say
    most, for where not all are wanted, and `below` a line on them. `caption` names what all rows share,
    `notes` what differs or failed. A line has units in its keys, and None where nothing was measured.
    """

    title: str
    question: str
    tables: tuple[Table, ...]
    caption: tuple[str, ...]
    notes: tuple[str, ...]
    lines: tuple[Mapping[str, object], ...]
    answer: str = ""
    overview: tuple[Table, ...] = ()
    below: str = ""


def build(
    records: Sequence[Record],
    *,
    baseline: str | None,
    question: str = "",
    notes: Iterable[str] = (),
    order: Sequence[str] = (),
    today: Mapping[str, Inputs] | None = None,
    scale: AtScale | None = None,
    tune: str = "",
    targets: Mapping[str, float] | None = None,
) -> Report:
    """Build the report of one suite.

    `baseline` is the label of the row that values are relative to. `order` are the suite's config ids: rows
    follow it, those without a record are counted, and other rows come last, by label. `today` are the hashes
    of what each run would read now, by its id: rows that have read something else are named. Where that is
    unknown, a row that ran again after its inputs had changed is shown as it is by then. `scale` are
    forecasts of the rows on a large model. `tune` is the command that tunes their learning rates. `targets`
    are perplexities by protocol: when rows reached them in training.
    """
    order = list(dict.fromkeys(order))
    shown, older = rows_shown(records, order, today)
    view = View(tuple(shown), baseline, targets or {})
    records = view.records
    lines = [plain(note) for note in notes]
    lines += describe.outdated(view, today or {}) + describe.left_out(older)
    lines += _completeness(view, order)
    suites = ", ".join(sorted({plain(item.suite) for item in records}))
    lines += describe.failures(view) + describe.harmed(view)
    lines += describe.untuned(view, tune or f"lorebench tune {suites}")
    lines += describe.doubts(view) + describe.warned(view)
    lines += [goal.missing for goal in view.goals if not goal.known]
    lines += [plain(note) for note in scale.notes()] if scale else []
    tables = tuple(sections(view, scale)) if records else ()
    failed = any(item.outcome.status != "ok" for item in records)
    main = {GLANCE, *([ENDINGS] if failed else []), *(goal.title for goal in view.goals)}
    return Report(
        title=suites or "no records",
        question=plain(question),
        tables=tables,
        caption=tuple(_caption(view, scale)) if records else (),
        notes=tuple(dict.fromkeys(lines)),
        lines=tuple(_lines(view, scale)),
        answer=describe.answer(view),
        overview=tuple(table for table in tables if table.title in main),
        below=plain(scale.line_below) if scale else "",
    )


def rows_shown(
    records: Sequence[Record], order: Sequence[str], today: Mapping[str, Inputs] | None
) -> tuple[list[Row], list[Row]]:
    """Return the rows of a report, and those that are left out since they read other inputs."""
    found = rows_of(records, order)
    return (found, []) if today and any(today.values()) else newest(found)


def _caption(view: View, scale: AtScale | None) -> list[str]:
    """Say what all rows share, and how to read the tables."""
    said = describe.shared(view)
    if any(view.bases):
        label = plain(view.baseline or "")
        said.append(f"relative to: {label} (a ratio, or for accuracy a difference in points)")
    said += describe.judged(view)
    said += [plain(scale.caption)] if scale else []
    return [*said, describe.READING]


def _completeness(view: View, order: Sequence[str]) -> list[str]:
    """Name what of the suite is not in the table, and what in the table is not of the suite."""
    notes = []
    named = list(zip(view.names, view.rows, view.bases, strict=True))
    missing = set(order) - {row.config_id for row in view.rows}
    if missing:
        notes.append(f"No record yet: {len(missing)} of the suite's {len(order)} configurations.")
    stale = [name for name, row, _ in named if order and row.config_id not in order]
    if stale:
        notes.append(f"Not in the suite as it is now: {'; '.join(stale)}.")
    alone = [name for name, _, base in named if base is None]
    if view.baseline is not None and alone:
        label = plain(view.baseline)
        notes.append(
            f"No single row {label!r} to compare with (same environment, model, data): {'; '.join(alone)}."
        )
    return notes


def _lines(view: View, scale: AtScale | None) -> list[dict[str, object]]:
    """Return every value of every row: mean, sd, n and the ratio to the baseline's mean."""
    lines: list[dict[str, object]] = []
    keys = list(dict.fromkeys(key for row in view.rows for key in row.stats))
    limits = {f"{key}_floor": value for key, value in view.floors.items()}
    limits |= {f"accuracy_{name}_chance": value for name, value in view.chances.items()}
    columns = (view.rows, view.names, view.bases, view.traits, view.verdicts)
    for row, name, base, traits, verdict in zip(*columns, strict=True):
        line: dict[str, object] = {"method": name, "config_id": row.config_id}
        line |= {"status": describe.status(row.records), "runs": len(row.records), "seeds": len(row.seeds)}
        for key in keys:
            stat, reference = row.stats.get(key), base.mean(key) if base else None
            line[f"{key}_mean"] = stat.mean if stat else None
            line[f"{key}_sd"] = stat.sd if stat else None
            line[f"{key}_n"] = stat.n if stat else 0
            if key not in FACTS:  # they are relative already
                line[f"{key}_ratio"] = stat.mean / reference if stat and reference else None
        line |= verdict.line if view.headline and view.baseline is not None else {}
        line |= scale.line(row) if scale else {}
        for goal in view.goals:
            line |= goal.line(len(lines)) if goal.known else {}
        lines.append(line | limits | dict(sorted(traits.items())))
    return lines
