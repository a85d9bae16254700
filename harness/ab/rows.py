"""What `lorebench ab` asks of both revisions: the rows of a suite, each with a name that no other has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from harness.config import Run
from harness.errors import UserError
from harness.suite import Suite, parse_override


def check_settings(settings: Sequence[str]) -> None:
    """Refuse the setting that tells the runs of a row apart."""
    for text in settings:
        if parse_override(text)[0] == "repeat":
            raise UserError(
                f"--set {text}: the runs of a row are counted here; give their number by --repeats"
            )


def control_row(suite: Suite, control: str | None) -> str | None:
    """The label of the control row; UserError for one that no row has."""
    labels = {run.name for run in suite.runs}
    if control is not None and control not in labels:
        raise UserError(f"--control {control}: no row has this label; known: {', '.join(sorted(labels))}")
    return control if control is not None else suite.baseline if suite.baseline in labels else None


def rows(suite: Suite, only: Sequence[str] | None, control: str | None, quality: bool, seeds: bool) -> Suite:
    """The rows that are asked for and the control row, each with one seed unless several were named."""
    asked = suite.only(only or ()).runs
    beside = control if all(run.name != control for run in asked) else None
    runs = [run for run in suite.runs if run in asked or run.name == beside]
    if not quality:
        runs = [run for run in runs if run.train.stage != "compress"]
    if not runs:
        raise UserError("none of these rows trains, so there is nothing to time; add --quality to compare it")
    if not seeds:
        runs = list({run.config_id: run for run in reversed(runs)}.values())[::-1]
    unique = {run.run_id: run for run in (run.model_copy(update={"repeat": 0}) for run in runs)}
    axes = tuple(key for key in suite.axes if key != "repeat")
    return _told_apart(replace(suite, runs=tuple(unique.values()), axes=axes))


def _told_apart(suite: Suite) -> Suite:
    """The same suite, unless two of its rows would be taken for each other."""
    known: dict[str, Run] = {}
    for run in suite.runs:
        if known.setdefault(json.dumps(suite.selector(run)), run) is not run:
            raise UserError(f"{suite.name}: two rows are called {run.name!r}; give each a label of its own")
    return suite
