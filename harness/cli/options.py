"""Arguments and options that several commands share, and how their values are read. No torch."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import endings, files, rates, strict_yaml
from harness import suite as suites
from harness.config import HUB_ID, Run
from harness.credentials import refuse_secrets, shown
from harness.errors import UserError
from harness.files import from_user, is_there
from harness.suite import Override, Suite

LONGEST_S = 366 * 24 * 3600.0


def use_threads(suite: Suite) -> Suite:
    """Let processes that are started from now on compute on the threads of a suite; return the suite.

    The variable OMP_NUM_THREADS wins over the suite, unless it is empty.
    """
    if suite.threads is not None and not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(suite.threads)
    return suite


def _model_override(model: str | None) -> list[Override]:
    if model is None:
        return []
    refuse_secrets(model, "--model")
    option, implied = f"--model {shown(model)}", dict[str, Any]()
    if _is_path(model, "--model"):
        section = {"source": "local", "path": model}
    else:
        name, _, revision = model.partition("@")
        if not HUB_ID.fullmatch(name):
            raise UserError(
                f"--model {shown(model)}: neither a folder here nor a hub id, as OWNER/NAME@REVISION"
            )
        section = {"source": "hub", "id": name} | ({"revision": revision} if revision else {})
        implied = {} if revision else {"revision": "main"}
    return [Override.of("model", section, option), Override.of("model", implied, option, yields=True)]


def _data_override(data: Sequence[str] | None) -> list[Override]:
    """Return overrides that train on a user's text, score its held-out part, and drop the embedded tasks.

    The suite's settings of the text stay, but for those that say where another text is, or that none of these
    files has a use for.
    """
    if not data:
        return []
    for item in data:
        refuse_secrets(item, "--data")
    section: dict[str, Any]
    implied: dict[str, Any]
    if all(_is_path(item, "--data") or endings.names_a_file(item) for item in data):
        section = {"source": "files", "paths": list(data)}
        kinds = {endings.kind(item) for item in data}
        implied = {} if "plain text" in kinds else {"separator": None}
        implied |= {} if "JSON lines" in kinds else {"field": "text", "template": None}
    elif len(data) == 1:
        name, _, revision = data[0].partition("@")
        if not HUB_ID.fullmatch(name):
            raise UserError(
                f"--data {shown(data[0])}: neither a file here nor a `datasets` id, as OWNER/NAME@REVISION"
            )
        section = {"source": "datasets", "id": name} | ({"revision": revision} if revision else {})
        implied = {"name": None, "split": "train"} | ({} if revision else {"revision": "main"})
    else:
        raise UserError(f"--data {' '.join(data)}: give several files or one `datasets` id, not a mixture")
    option = f"--data {shown(' '.join(data))}"
    follows = {"data": implied, "evaluate.perplexity": ["heldout"], "evaluate.tasks": []}
    others = [Override.of(key, value, option, yields=True) for key, value in follows.items()]
    return [Override.of("data", section, option), *others]


def _is_path(text: str, option: str) -> bool:
    """Return whether a text is a path: it exists, or is written like one."""
    return is_there(from_user(text, option)) or text.startswith(("/", "./", "../", "~"))


def seconds(text: str, option: str) -> float:
    """Read a duration such as 90s, 25m, 6h or 90, which is seconds; UserError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number = text[:-1] if text[-1:] in units else text
    value = float(number) if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", number) else 0.0
    value *= units.get(text[-1:], 1.0)
    if not 0 < value <= LONGEST_S:
        raise UserError(
            f"{option} {shown(text)} is not a duration; write for example 90s, 25m or 6h (at most a year)"
        )
    return value


def deadline_s(text: str | None) -> float | None:
    """Read `--deadline`; None where it was not given."""
    return None if text is None else seconds(text, "--deadline")


def check_yaml(path: Path) -> None:
    """Raise UserError for a file of `--out` that is not named as YAML, or that cannot be written."""
    if path.suffix not in strict_yaml.ENDINGS or not files.can_be_replaced(path):
        allowed = " or ".join(strict_yaml.ENDINGS)
        raise UserError(
            f"--out {path}: name a file that ends in {allowed}, in a folder that can be written to"
        )


def method_options(settings: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of a method as given by `--set OPTION=VALUE`."""
    given = [suites.parse_override(text) for text in settings or ()]
    suites.check_each_once(given)
    return {override.key: override.value.plain() for override in given}


Results = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the records.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Deadline = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Timeout per run: 90s, 25m or 6h; a bare number is seconds. Without it, a run ends that makes "
        "no progress: 30 minutes without an update, 6 hours in another phase.",
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Print all tables, settings and notes.")]


def complete_suite(incomplete: str) -> list[str]:
    """Return the suites that ship whose names begin as typed; a shell completes the names of files."""
    return [name for name in suites.shipped_suites() if name.startswith(incomplete)]


@dataclass(frozen=True)
class Selection:
    """A suite with what the command line changes in it and selects of it: options of several commands."""

    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="Name of an included suite, or a YAML file.",
            autocompletion=complete_suite,
        ),
    ]
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model folder, or a hub id with optional @revision.")
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="A file of text or JSON lines (repeatable), or a `datasets` id with optional @revision.",
        ),
    ] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Select runs by label, method, seed or any setting; repeatable."
        ),
    ] = None
    seed: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Run this seed instead of the suite's; repeatable.")
    ] = None
    rates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Train each row at its learning rate in a file of `lorebench tune`."
        ),
    ] = None

    def load(self) -> Suite:
        """Return the suite with its overrides, seeds and selection applied."""
        return self.everything().only(self.only or ()).checked()

    def everything(self) -> Suite:
        """Return the suite with its overrides and seeds; what is selected of it is still to be checked."""
        overrides = self.overrides()
        if self.seed and (twice := [override for override in overrides if override.key == "seed"]):
            raise UserError(f"{twice[0].value.where}: --seed gives the seed, too; leave one of them out")
        suite = suites.expand(self.suite, overrides).with_seeds(self.seed or ())
        return suite if self.rates is None else rates.applied(suite, self.rates, overrides)

    def overrides(self) -> list[Override]:
        """Return what the options change in every run."""
        given = [suites.parse_override(text) for text in self.settings or ()]
        return [*_model_override(self.model), *_data_override(self.data), *given]

    def check_files(self) -> None:
        """Raise UserError for a file of `--data` that is missing or has an unknown ending; none is read."""
        from harness.engine.data import documents

        for item in self.data or ():
            if _is_path(item, "--data") or endings.names_a_file(item):
                documents.kind(documents.existing_file(item))

    def forwarded(self, device: str) -> list[str]:
        """Return what changes the suite, and the device, as arguments of `lorebench run`."""
        given = [f"--model={self.model}"] if self.model else []
        given += [f"--data={item}" for item in self.data or ()]
        given += [f"--set={item}" for item in self.settings or ()]
        given += [f"--rates={self.rates}"] if self.rates else []
        return given + ([f"--device={device}"] if device != "auto" else [])

    def tune(self) -> str:
        """Return the command that tunes the learning rates of the suite as it is otherwise changed here."""
        given = [text for text in self.settings or () if suites.parse_override(text).key not in rates.GIVEN]
        own = replace(self, settings=given, rates=None).forwarded("auto")
        return shlex.join(["lorebench", "tune", self.suite, *own])

    def rerun(self, chosen: Suite, device: str) -> Callable[[Run], str]:
        """Return a function that writes the command that repeats one run of the chosen suite."""

        def command(run: Run) -> str:
            seed = [f"--seed={run.seed}"] if self.seed else []  # a seed that the suite itself may not have
            only = [f"--only={item}" for item in chosen.selector(run)]
            return shlex.join(["lorebench", "run", self.suite, *self.forwarded(device), *seed, *only])

        return command


def selects(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer offer the fields of `Selection` in place of the parameter `selection` of a command.

    A parameter of the command's own takes the place of the field of its name.
    """
    own = inspect.signature(command, eval_str=True).parameters
    every = inspect.signature(Selection, eval_str=True).parameters
    fields = {name: field for name, field in every.items() if name not in own}

    @functools.wraps(command)
    def with_selection(**given: Any) -> None:
        command(selection=Selection(**{name: given.pop(name) for name in fields}), **given)

    shown = [each for name in own for each in (fields.values() if name == "selection" else [own[name]])]
    with_selection.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return with_selection
