"""The command `lorebench report`: the tables of a suite from its records, and its page. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from harness.cli import options, output
from harness.cli.plan import forecast_at_scale
from harness.cli.show import publish, say
from harness.credentials import shown
from harness.errors import UserError, counted
from harness.files import cache_folder, visible
from harness.inputs import Inputs, by_run

if TYPE_CHECKING:
    from harness.engine.sweep.resolution import Plan
    from harness.record import Record
    from harness.suite import Suite
    from harness.tables.history.series import History
    from harness.tables.report.at_scale import AtScale
    from harness.tables.report.build import Report

Format = Literal["text", "md", "csv", "tex", "json"]
PAGE = "html"
Out = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Write a file in the format of its ending, .html for a page with charts that opens offline, or "
        "a folder of md, csv and tex; repeatable. [default: the folder tables beside the records]",
    ),
]
Earlier = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Records of earlier commits for the page; repeatable."),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PROTOCOL=PPL",
        help="Say after how many tokens and seconds rows reached this perplexity in training; repeatable. "
        "[default: the targets of the suite]",
    ),
]


@options.selects
def report(
    selection: options.Selection,
    results: options.Results = Path("runs"),
    form: Annotated[Format, typer.Option("--format", help="Format of what is printed.")] = "text",
    out: Out = None,
    history: Earlier = None,
    target: Target = None,
    full: options.Full = False,
) -> None:
    """Print and write the tables of a suite from its records, without running anything."""
    from harness.engine.sweep import resolution

    to = output.destinations(out, (*get_args(Format), PAGE), folder=True)
    if PAGE in to.values():
        from harness.tables.page.chart import library

        library()
    elif history:
        raise UserError("--history belongs to a page: add --out FILE.html")
    chosen = selection.load()
    if target:
        chosen = replace(chosen, targets=_targets(target))
    earlier = _history(chosen, history) if history else None
    # Only the options of methods are needed, and hashes of what is still there.
    plan = resolution.resolve(chosen.runs, text=False, model=False, cache=cache_folder())
    wanted = plan.runs
    folders = [path for path in visible(results, f"*/{chosen.name}") if path.is_dir()]
    if not folders:
        raise UserError(
            f"no records of suite {chosen.name!r} under {results}; run: lorebench run {selection.suite}"
        )
    found = {folder: _matching(plan, folder) for folder in folders}
    scale, tune = forecast_at_scale(chosen), selection.tune()
    for folder, (records, _, notes) in found.items():
        if not records:
            for note in notes:
                say(note)
            continue
        machine = "" if len(folders) == 1 else f"-{folder.parent.name}"
        own = _of_machine(to, machine) or {folder / "tables": output.FOLDER}
        page = {PAGE: partial(_page, chosen, records, results, earlier, plan.inputs, scale)}
        name = chosen.name + machine
        publish(chosen, records, notes, own, name, plan.inputs, form, page, scale, tune, full)
    if not any(records for records, _, _ in found.values()):
        from harness.tables.report.other_settings import other_settings

        there = other_settings(wanted, [record for _, others, _ in found.values() for record in others])
        there = there or f"there are no valid records under {results}"
        raise UserError(f"0 of {counted(len(wanted), 'run')} match; {there}")


def _targets(given: Sequence[str]) -> dict[str, float]:
    """Return perplexities by protocol; UserError for anything else."""
    found: dict[str, float] = {}
    for text in given:
        name, _, number = (part.strip() for part in text.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not 1 <= value < math.inf:
            raise UserError(
                f"--target {shown(text)}: write PROTOCOL=PERPLEXITY, at least 1, for example heldout=25"
            )
        if name in found:
            raise UserError(f"--target {shown(text)}: {name} has a target already; give each protocol one")
        found[name] = value
    return found


def _of_machine(to: Mapping[Path, str], machine: str) -> dict[Path, str]:
    """Return what to write of one machine: files have its name in theirs, a folder takes those of all."""
    return {
        path if kind == output.FOLDER else path.with_stem(path.stem + machine): kind
        for path, kind in to.items()
    }


def _matching(plan: Plan, folder: Path) -> tuple[list[Record], list[Record], list[str]]:
    """Return the records of the wanted runs in a folder, the other records, and notes on what is missing."""
    from harness.engine.sweep.earlier import labelled
    from harness.tables.records import load
    from harness.tables.report.other_settings import other_settings

    wanted = plan.runs
    found, notes = load(folder)
    records = list(labelled(wanted, by_run(wanted, found, plan.inputs)).values())
    used = {id(record.outcome) for record in records}  # a record under other paths is a copy
    others = [record for record in found if id(record.outcome) not in used]
    if records:
        missing = len(wanted) - len(records)
        notes += [f"no record yet: {missing} of {counted(len(wanted), 'run')}"] if missing else []
        if others:
            why = other_settings(wanted, others)
            count = counted(len(others), "record")
            notes.append(f"not shown, of other configurations: {count}; {why}")
    return records, others, notes


def _history(suite: Suite, folders: Sequence[Path]) -> History:
    """Return the history of a suite from the records of earlier commits."""
    from harness.tables.history.build import build
    from harness.tables.history.loading import collect

    labels = list(dict.fromkeys(run.name for run in suite.runs))
    return build(collect(folders, suite.name), folders, suite.baseline, labels=labels)


def _page(
    suite: Suite,
    records: Sequence[Any],
    results: Path,
    history: History | None,
    today: Mapping[str, Inputs],
    scale: AtScale | None,
    built: Report,
) -> str:
    from harness.files import ROOT
    from harness.tables.page import document
    from harness.tables.papers.lookup import sources

    return document.build(
        built,
        records,
        baseline=suite.baseline,
        order=[record.config_id for record in records],
        published=sources(ROOT, results),
        history=history,
        today=today,
        scale=scale,
        targets=suite.targets,
    )
