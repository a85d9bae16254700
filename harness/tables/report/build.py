"""The report: records in, one comparable table out, as Markdown, CSV, LaTeX and on the terminal.

The same records always make the same bytes, so that generated tables can be checked for drift. The
CSV holds every figure in bytes, seconds or shares of one, one line per row; the other forms hold small
tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.record import Record
from harness.tables.aggregate import FACTS
from harness.tables.aggregate import rows as rows_of
from harness.tables.format import Table, plain
from harness.tables.report import notes as describe
from harness.tables.report.sections import sections
from harness.tables.report.view import View

if TYPE_CHECKING:  # pandas takes a second to import, and only who works with a frame needs it
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """Tables of text for people, `lines` with all numbers, one a row, and what must be said beside them.

    All text is plain; a renderer escapes it. `caption` names what all rows share, `notes` what differs
    or failed.
    """

    title: str
    question: str
    tables: tuple[Table, ...]
    caption: tuple[str, ...]
    notes: tuple[str, ...]
    lines: tuple[Mapping[str, object], ...]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The lines as a data frame: units in the names of its columns, NaN where nothing was measured."""
        import pandas

        frame = pandas.DataFrame(self.lines)
        numeric = [name for name in frame if str(name).endswith(("_mean", "_sd", "_ratio"))]
        return frame.astype(dict.fromkeys(numeric, "float64"))


def build(
    records: Sequence[Record],
    *,
    baseline: str | None,
    question: str = "",
    notes: Iterable[str] = (),
    order: Sequence[str] = (),
) -> Report:
    """Make the report of one suite.

    `baseline` is the label of the row that all is relative to, `order` the suite's config ids: rows
    follow it, what is missing is counted, and what is not in it comes last, by label.
    """
    order = list(dict.fromkeys(order))
    view = View(tuple(rows_of(records, order)), baseline)
    said = [plain(note) for note in notes]
    said += _completeness(view, order)
    said += describe.doubts(view.rows, view.names) + describe.failures(view.rows, view.names)
    caption = describe.shared(view.rows)
    if any(view.bases):
        caption.append(
            f"relative to: {plain(baseline or '')} (a ratio, or for accuracy a difference in points)"
        )
    suites = ", ".join(sorted({plain(item.suite) for item in records}))
    return Report(
        title=suites or "no records",
        question=plain(question),
        tables=tuple(sections(view)) if records else (),
        caption=(*caption, describe.READING) if records else (),
        notes=tuple(dict.fromkeys(said)),
        lines=tuple(_lines(view)),
    )


def _completeness(view: View, order: Sequence[str]) -> list[str]:
    """What of the suite is not in the table, and what in the table is not of the suite."""
    notes = []
    there = {row.config_id for row in view.rows}
    missing = [config_id for config_id in order if config_id not in there]
    if missing:
        notes.append(f"{len(missing)} of the suite's {len(order)} configurations have no record yet.")
    known = set(order)
    stale = [
        name for row, name in zip(view.rows, view.names, strict=True) if order and row.config_id not in known
    ]
    if stale:
        notes.append(f"Not in the suite as it is now: {'; '.join(stale)}.")
    alone = [name for name, base in zip(view.names, view.bases, strict=True) if base is None]
    if view.baseline is not None and alone:
        label = plain(view.baseline)
        notes.append(
            f"No one row {label!r} to be compared with (same stand, model, data): {'; '.join(alone)}."
        )
    return notes


def _lines(view: View) -> list[dict[str, object]]:
    """Every figure of every row: mean, sd, n and the ratio to the baseline's mean."""
    lines: list[dict[str, object]] = []
    keys = list(dict.fromkeys(key for row in view.rows for key in row.stats))
    limits = {f"{key}_floor": view.floor(key) for key in keys if key.startswith("perplexity_")}
    tasks = [key.removeprefix("accuracy_") for key in keys if key.startswith("accuracy_")]
    limits |= {f"accuracy_{name}_chance": view.chance(name) for name in tasks}
    for row, name, base in zip(view.rows, view.names, view.bases, strict=True):
        line: dict[str, object] = {"method": name, "config_id": row.config_id}
        line |= {"status": describe.status(row.records), "runs": len(row.records), "seeds": len(row.seeds)}
        for key in keys:
            stat, reference = row.stats.get(key), base.mean(key) if base else None
            line[f"{key}_mean"] = stat.mean if stat else None
            line[f"{key}_sd"] = stat.sd if stat else None
            line[f"{key}_n"] = stat.n if stat else 0
            if key not in FACTS:  # they are relative already
                line[f"{key}_ratio"] = stat.mean / reference if stat and reference else None
        line |= {key: value for key, value in limits.items() if value is not None}
        lines.append(line | dict(sorted(describe.traits(row).items())))
    return lines


# --------------------------------------------------------------------------------------- renderers
