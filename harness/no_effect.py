"""Refuse settings that would be accepted and ignored, before anything trains. No torch.

A setting that belongs to one row is checked in that row. Settings that rows usually share by `base` are
refused where no row of the suite acts on them. Those of text files are checked with the files, in
`engine/data/documents.py`. In stage `compress` the settings of training are ignored on purpose: such rows
stand beside rows that train.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from harness.config import DatasetsData, RandomData, Run, ShapeModel, TrainConfig
from harness.credentials import shown
from harness.errors import UserError

#: Letters without a shape: those that Unicode calls default-ignorable, and the blank of Braille.
UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
LONGEST_LABEL = 200


def refuse_in_row(run: Run) -> None:
    """Raise UserError for the first setting of one row without effect there."""
    for path, problem in _of_a_row(run):
        raise UserError(f"{run.place(path.split('.'))}: {path}: {problem}")


def refuse_shared(runs: Sequence[Run], of_options: bool = False) -> None:
    """Raise UserError for the first setting that no run acts on; `of_options`: only if an option gave it."""
    different: dict[tuple[int, ...], Run] = {}
    for run in runs:  # most differ in their seed or method alone
        different.setdefault(
            tuple(map(id, (run.model, run.data, run.train, run.evaluate, run.misfit is None))), run
        )
    for shared in _SHARED:
        given = [run for run in different.values() if shared.is_given(run)]
        fitting = [run for run in given if run.misfit is None]  # of others, the misfit is to blame
        if not fitting or any(map(shared.is_used, given)):
            continue
        emptied = any(str(run.place(("evaluate", "tasks"))).startswith("--data") for run in given)
        place = str(fitting[0].place(shared.setting.split(".")))
        if not (shared.of_tasks and emptied) and (place.startswith("--") or not of_options):
            raise UserError(f"{place}: {shared.setting} has no effect: {shared.because}")


def warm_up_alone(train: TrainConfig) -> list[str]:
    """Return a warning where the warm-up leaves no update to the schedule, as in a short trial."""
    if train.warmup < train.steps:
        return []
    return [
        f"{train.warmup} updates of warm-up leave none of {train.steps}: "
        f"the learning rate never reaches {train.lr:g}"
    ]


def doubts(runs: Sequence[Run]) -> list[str]:
    """Return such warnings of all runs that train, each once, with the rows that it is about."""
    rows: dict[str, dict[str, None]] = {}
    for run in runs:
        for text in [] if run.train.stage == "compress" else warm_up_alone(run.train):
            rows.setdefault(text, {})[run.name] = None
    every = {run.name for run in runs if run.train.stage != "compress"}
    return [
        f"{'all rows' if set(names) == every else ', '.join(names)}: {text}" for text, names in rows.items()
    ]


def _of_a_row(run: Run) -> Iterator[tuple[str, str]]:
    train = run.train
    if train.stage != "compress":
        late = [update for update in train.refresh_at if update > train.steps]
        if late:
            yield "train.refresh_at", f"update {late[0]} is beyond the last one, train.steps {train.steps}"
        if list(train.refresh_at) != sorted(set(train.refresh_at)):
            yield "train.refresh_at", "give each update once, in increasing order"
    if isinstance(run.data, DatasetsData) and run.data.template is not None and run.data.field != "text":
        yield "data.field", f"{run.data.field!r} is not read with data.template; leave one of them out"
    yield from _twice("evaluate.tasks", run.evaluate.tasks)
    yield from _twice("evaluate.task_paths", run.evaluate.task_paths)
    yield from _twice("evaluate.perplexity", [protocol.name for protocol in run.evaluate.perplexity])
    yield from _in_training(run)
    label = run.name if run.label is None else run.label
    if UNSEEN.search(label):
        yield "label", "it holds a character that is drawn as nothing; leave it out"
    if not label.strip() or not label.isprintable() or (run.label and len(label) > LONGEST_LABEL):
        yield "label", f"give 1 to {LONGEST_LABEL} printable characters, not all of them spaces"
    if run.label and run.label != (alone := normalize("NFC", " ".join(run.label.split()))):
        yield (
            "label",
            f"cannot be told from {shown(alone)} in a table: write that (no blanks at the ends, NFC)",
        )


def _in_training(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with scores in the middle of a training; an option may leave out all scores."""
    during, protocols = run.evaluate.during, run.evaluate.perplexity
    if during is None:
        return
    if not protocols:
        section = run.written.value.get("evaluate") if run.written else None
        given = section.value.get("perplexity") if section else None
        if given is None or not given.where.startswith("--"):
            yield "evaluate.during", "evaluate.perplexity names no protocol; add one, or leave this out"
        return
    if during.perplexity == ():
        yield "evaluate.during.perplexity", "it is empty; leave it out for all of evaluate.perplexity"
    for name in during.perplexity or ():
        if not any(item.answers_to([name]) for item in protocols):
            known = ", ".join(item.name for item in protocols)
            yield "evaluate.during.perplexity", f"{shown(name)} is none of evaluate.perplexity ({known})"
    yield from _twice("evaluate.during.perplexity", during.perplexity or ())
    if run.train.stage != "compress" and during.every >= run.train.steps:
        yield (
            "evaluate.during.every",
            f"{during.every} is not below train.steps {run.train.steps}, and the last update is scored "
            "anyway",
        )


def _twice(setting: str, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    for value in sorted({value for value in values if values.count(value) > 1}):
        yield setting, f"{value} is given twice; name each once"


@dataclass(frozen=True)
class _Shared:
    """A setting that acts only where another allows it."""

    setting: str
    is_given: Callable[[Run], bool]
    is_used: Callable[[Run], bool]
    because: str
    of_tasks: bool = False


def _reads_text(run: Run) -> bool:
    looked_at = run.calibration is not None and run.calibration.data is not None
    scored = run.evaluate.perplexity or run.evaluate.tasks
    return not isinstance(run.data, RandomData) or looked_at or bool(scored)


_NO_TASKS = "no row scores tasks; add evaluate.tasks or leave it out"
_SHARED = (
    *(
        _Shared(
            f"evaluate.{name}",
            lambda run, name=name: getattr(run.evaluate, name) not in (None, ()),  # type: ignore[misc]
            lambda run: bool(run.evaluate.tasks),
            _NO_TASKS,
            of_tasks=True,
        )
        for name in ("limit", "shots", "task_paths", "task_data")
    ),
    _Shared(
        "evaluate.during",
        lambda run: run.evaluate.during is not None,
        lambda run: run.train.stage != "compress",
        "no row trains; leave it out",
    ),
    _Shared(
        "train.min_lr_ratio",
        lambda run: run.train.stage != "compress" and run.train.min_lr_ratio != TrainConfig().min_lr_ratio,
        lambda run: run.train.schedule != "constant",
        "with train.schedule constant the rate does not fall; leave it out",
    ),
    _Shared(
        "model.tokenizer",
        lambda run: isinstance(run.model, ShapeModel) and run.model.tokenizer is not None,
        _reads_text,
        "no row reads text; leave it out",
    ),
)
