"""Build the history of a suite: records in, series with their change points and breaks out.

`segments.py` decides which runs are comparable, `exact_steps.py` and `noisy_steps.py` find change points,
`machine_noise.py` attributes those of speed. Nothing here reads the command line or writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import UserError, counted, listed, nearest
from harness.tables.aggregate import grouped
from harness.tables.format import plain
from harness.tables.history import exact_steps, machine_noise, noisy_steps
from harness.tables.history.commits import place
from harness.tables.history.exact_steps import LevelChange
from harness.tables.history.loading import Collection, Found, Selection
from harness.tables.history.quantities import values
from harness.tables.history.segments import Segment, breaks, fields, join, names
from harness.tables.history.series import KINDS, Break, ChangePoint, Commit, History, Series

#: The repository of this code orders commits that no nearer one knows.
HERE = Path(__file__).resolve().parent
#: Commits with a lost value that a line names.
MOST_LOST = 4


def build(
    collection: Collection,
    folders: Sequence[Path],
    baseline: str | None = None,
    only: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> History:
    """Return the history of the records that were collected below some folders.

    `baseline` is the label of the control row, `only` has conditions KEY=VALUE, `labels` the order of rows.
    UserError where no record or no value meets the conditions.
    """
    selection = Selection.of(only)
    near = [folder if folder.is_dir() else folder.parent for folder in folders]
    commits, placed = place(collection.found, [*near, Path.cwd(), HERE])
    rows = names(placed)
    used = [(each, order) for each, order in placed if selection.takes(each.record)]
    if not used:
        known = sorted({plain(each.record.label) for each in collection.found})
        raise UserError(f"--only {' '.join(only)}: no record matches; the labels are: {listed(known)}")
    joined = [one for one in join(used, rows) if selection.shows(one.quantity)]
    if not joined:
        known = sorted({quantity.name for each, _ in used for quantity in values(each.record)})
        raise UserError(f"--only {' '.join(only)}: {nearest(selection.quantity, known)}")
    segments = [one for one in joined if one.runs]
    if not segments:
        raise UserError(f"--only {' '.join(only)}: no run has a finite value of it; drop the condition")
    rank = _ranks(labels, collection.found, rows)
    segments.sort(key=lambda one: (rank[one.config_id], KINDS.index(one.quantity.kind)))
    control = join([pair for pair in placed if pair[0].record.label == baseline], rows)
    series = {id(one): _series(one, collection.suite, commits, control, baseline) for one in segments}
    return History(
        suite=collection.suite,
        baseline=baseline,
        commits=commits,
        series=tuple(series.values()),
        breaks=tuple(_breaks(segments, series)),
        runs=len(used),
        skipped=tuple(collection.skipped),
        notes=(*_lost(joined, commits), *_notes(collection, commits)),
    )


def _ranks(labels: Sequence[str], found: Sequence[Found], rows: dict[str, str]) -> dict[str, tuple[int, str]]:
    """Rank rows in the order of the suite; others follow by name."""
    places = {label: number for number, label in reversed(list(enumerate(labels)))}
    known = {each.record.config_id: each.record.label for each in found}
    return {config: (places.get(label, len(labels)), rows[config]) for config, label in known.items()}


def _series(
    segment: Segment, suite: str, commits: Sequence[Commit], controls: Sequence[Segment], baseline: str | None
) -> Series:
    quantity = segment.quantity
    tested, remarks = True, tuple[str, ...]()
    if quantity.kind == "memory":
        moved: Sequence[LevelChange] = exact_steps.memory(segment.runs, quantity)
        if not quantity.part:
            remarks = exact_steps.disagreements(segment.runs, commits)
    elif quantity.kind == "status":
        moved = list(exact_steps.status(segment.runs))
    else:
        moved, tested, remarks = noisy_steps.search(segment.runs, quantity)
        if quantity.kind == "perplexity":
            moved = sorted(
                (*moved, *exact_steps.lost(segment.runs, segment.lost, quantity)),
                key=lambda each: (each.second, each.first),
            )
    points = tuple(run.point for run in segment.runs)
    text = "\0".join(
        (suite, segment.row, quantity.key, segment.config_id, points[0].run_id, str(points[0].when))
    )
    name = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:10]
    return Series(
        id=name,
        suite=plain(suite),
        row=segment.row,
        quantity=quantity,
        config_id=segment.config_id,
        environment=segment.known,
        points=points,
        change_points=tuple(_changes(name, segment, moved, controls, baseline)),
        tested=tested,
        remarks=remarks,
        lost=tuple(run.point for run in segment.lost),
    )


def _changes(
    series: str,
    segment: Segment,
    moved: Sequence[LevelChange],
    controls: Sequence[Segment],
    baseline: str | None,
) -> Iterable[ChangePoint]:
    for number, each in enumerate(moved):
        remark, doubtful = each.remark, False
        if segment.quantity.kind == "time":
            remark, doubtful = machine_noise.judge(moved, number, segment, controls, baseline)
        place = series, segment.row, segment.quantity, each.first, each.second
        yield ChangePoint(*place, each.before, each.after, each.p_value, each.cause, remark, doubtful)


def _breaks(segments: Sequence[Segment], series: dict[int, Series]) -> Iterable[Break]:
    for before, after, beside in breaks(segments):
        old, new = series[id(before)], series[id(after)]
        yield Break(new.row, new.quantity, new.first, old.id, new.id, fields(before, after), beside)


def _lost(segments: Sequence[Segment], commits: Sequence[Commit]) -> Iterable[str]:
    """Yield a line for each row and quantity with values that can be neither drawn nor tested."""
    lost = [(one.row, one.quantity.name, run) for one in segments for run in one.lost]
    for (row, name), several in grouped(lost, lambda each: each[:2]).items():
        places = list(dict.fromkeys(f"{run.value:g} at {commits[run.order].name}" for *_, run in several))
        more = f" and {len(places) - MOST_LOST} more" if len(places) > MOST_LOST else ""
        yield f"{row}: {name} is not finite: {', '.join(places[:MOST_LOST])}{more}"


def _notes(collection: Collection, commits: Sequence[Commit]) -> Iterable[str]:
    yield from collection.notes
    if collection.unfinished:
        yield f"not shown: {counted(collection.unfinished, 'record')} of unfinished runs"
    unknown = [commit for commit in commits if commit.sha and not commit.known]
    if unknown:
        yield f"in no repository here, ordered by start: {len(unknown)} of {counted(len(commits), 'commit')}"
    if any(commit.sha is None for commit in commits):
        yield "records without a commit are grouped by the day of their run"
