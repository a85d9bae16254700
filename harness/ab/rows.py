"""The rows of a suite that `lorebench ab` runs on both revisions, each with a name that no other has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from harness.config import Run
from harness.errors import UserError
from harness.suite import Suite, parse_override


def check_settings(settings: Sequence[str]) -> None:
    """Refuse an override of `repeat`, which numbers the runs of a row."""
    for text in settings:
        if parse_override(text)[0] == "repeat":
            raise UserError(f"--set {text}: the runs of a row are numbered here; set how many by --repeats")


def control_row(suite: Suite, control: str | None) -> str | None:
    """Return the label of the control row, by default the suite's baseline; UserError for an unknown one."""
    labels = {run.name for run in suite.runs}
    if control is not None and control not in labels:
        raise UserError(f"--control {control}: no row has this label; known: {', '.join(sorted(labels))}")
    return control if control is not None else suite.baseline if suite.baseline in labels else None


def rows(suite: Suite, only: Sequence[str] | None, control: str | None, quality: bool, seeds: bool) -> Suite:
    """Return the selected rows and the control row, one seed each unless `seeds` were given."""
    selected = suite.only(only or ()).runs
    added = control if all(run.name != control for run in selected) else None
    runs = [run for run in suite.runs if run in selected or run.name == added]
    if not quality:
        runs = [run for run in runs if run.train.stage != "compress"]
    if not runs:
        raise UserError("none of these rows trains, so nothing can be timed; add --quality to compare it")
    if not seeds:
        runs = list({run.config_id: run for run in reversed(runs)}.values())[::-1]
    unique = {run.run_id: run for run in (run.model_copy(update={"repeat": 0}) for run in runs)}
    axes = tuple(key for key in suite.axes if key != "repeat")
    return _unambiguous(replace(suite, runs=tuple(unique.values()), axes=axes))


def _unambiguous(suite: Suite) -> Suite:
    """Return the suite; UserError where no condition tells two of its rows apart."""
    known: dict[str, Run] = {}
    for run in suite.runs:
        if known.setdefault(json.dumps(suite.selector(run)), run) is not run:
            raise UserError(f"{suite.name}: two rows are called {run.name!r}; give each a label of its own")
    return suite
