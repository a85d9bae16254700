"""Arguments and options that several commands share, and how their values are read. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import suite as suites
from harness.config import Run
from harness.errors import UserError
from harness.suite import Override, Suite

LARGEST_GIB = 100_000.0
LONGEST_S = 366 * 24 * 3600.0


def load(
    suite: str,
    model: str | None,
    data: Sequence[str] | None,
    settings: Sequence[str] | None,
    only: Sequence[str] | None,
    seeds: Sequence[int] | None,
) -> Suite:
    """Return a suite, by name or file, with its overrides, seeds and selection applied."""
    overrides: list[Override] = [*_model_override(model), *_data_override(data)]
    overrides += [suites.parse_override(text) for text in settings or ()]
    return suites.load(suite, overrides).with_seeds(seeds or ()).only(only or ())


def _model_override(model: str | None) -> list[Override]:
    if model is None:
        return []
    if _is_path(model):
        return [("model", {"source": "local", "path": model})]
    name, _, revision = model.partition("@")
    return [("model", {"source": "hub", "id": name, "revision": revision or "main"})]


def _data_override(data: Sequence[str] | None) -> list[Override]:
    """Return overrides that train on a user's text, score its held-out part, and drop the embedded tasks."""
    if not data:
        return []
    section: dict[str, Any]
    if all(_is_path(item) or item.endswith((".txt", ".jsonl", ".json", ".gz", ".raw")) for item in data):
        section = {"source": "files", "paths": list(data)}
    elif len(data) == 1:
        name, _, revision = data[0].partition("@")
        section = {"source": "datasets", "id": name, "revision": revision or "main"}
    else:
        raise UserError(f"--data {' '.join(data)}: give several files or one `datasets` id, not a mixture")
    return [("data", section), ("evaluate.perplexity", ["heldout"]), ("evaluate.tasks", [])]


def _is_path(text: str) -> bool:
    """Return whether a text is a path: it exists, or is written like one."""
    return Path(text).expanduser().exists() or text.startswith(("/", "./", "../", "~"))


def seconds(text: str) -> float:
    """Read a duration such as 90, 90s, 25m or 6h; UserError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value <= LONGEST_S:
        raise UserError(f"{text!r} is not a duration; write for example 90s, 25m or 6h (at most a year)")
    return value


def forwarded(
    model: str | None, data: Sequence[str] | None, settings: Sequence[str] | None, device: str
) -> list[str]:
    """Return options of one command as arguments of `lorebench run`."""
    given = [f"--model={model}"] if model else []
    given += [f"--data={item}" for item in data or ()]
    given += [f"--set={item}" for item in settings or ()]
    return given + ([f"--device={device}"] if device != "auto" else [])


def rerun(
    suite: str,
    chosen: Suite,
    model: str | None,
    data: Sequence[str] | None,
    settings: Sequence[str] | None,
    seeds: Sequence[int] | None,
    device: str,
) -> Callable[[Run], str]:
    """Return a function that writes the command that repeats one run of a suite."""
    given = forwarded(model, data, settings, device)

    def command(run: Run) -> str:
        seed = [f"--seed={run.seed}"] if seeds else []  # a seed that the suite itself may not have
        only = [f"--only={item}" for item in chosen.selector(run)]
        return shlex.join(["lorebench", "run", suite, *given, *seed, *only])

    return command


def sizes(devices: Sequence[str], reserve: str) -> tuple[tuple[float, ...], float]:
    """Return device sizes and the reserve on each, in GiB; UserError where nothing would be left."""
    given = tuple(dict.fromkeys(_gib(text, "--device-gib") for text in devices))
    reserved = _gib(reserve, "--reserve-gib", zero=True)
    if given and reserved >= min(given):
        raise UserError(
            f"--reserve-gib {reserved:g} leaves nothing of --device-gib {min(given):g}; reserve less"
        )
    return given, reserved


def _gib(text: str, option: str, zero: bool = False) -> float:
    """Read a size in GiB, 0 only where `zero` allows it; UserError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (0 < value <= LARGEST_GIB or (zero and value == 0)):
        allowed = "from 0" if zero else "above 0"
        raise UserError(f"{option} {text}: give GiB as a number {allowed}, at most {LARGEST_GIB:g}")
    return value


SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite that ships, by name, or a YAML file.")
]

Results = Annotated[Path, typer.Option(help="Folder of the records.")]

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
]

OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="KEY=VALUE", help="Select runs by label, method, seed or any setting; repeatable."
    ),
]

ModelOption = Annotated[str | None, typer.Option(help="A model folder, or a hub id with optional @revision.")]

DataOption = Annotated[
    list[str] | None,
    typer.Option(help="A .txt or .jsonl file (repeatable), or a `datasets` id with optional @revision."),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]

DeviceGib = Annotated[
    list[str] | None,
    typer.Option("--device-gib", metavar="GIB", help="Size of a device to fit the runs on; repeatable."),
]

ReserveGib = Annotated[
    str,
    typer.Option(
        "--reserve-gib",
        metavar="GIB",
        help="Reserve on each device for what is not modelled: the device context, workspaces of libraries, "
        "fragmentation.",
    ),
]

RanksOption = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        metavar="NAME|FILE",
        help="Ranks that depend on the weights: the name of an approximation, a record, or a JSON file of "
        "{layer: rank} or {method: {layer: rank}}.",
    ),
]

Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Run these seeds instead of the suite's.")]
