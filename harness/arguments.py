"""Arguments and options that several commands share, with their help; the folder that they all cache in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

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
        "--only", metavar="KEY=VALUE", help="Keep matching runs: label, method, seed or any setting."
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
    typer.Option("--device-gib", metavar="GIB", help="Say what fits such a device; repeatable."),
]
ReserveGib = Annotated[
    str,
    typer.Option(
        "--reserve-gib",
        metavar="GIB",
        help="Kept free on a device for what a simulation does not see: the device context, workspaces of "
        "libraries, fragmentation.",
    ),
]
RanksOption = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        metavar="NAME|FILE",
        help="Ranks that depend on values: the name of an approximation, a record, or a JSON file of "
        "{layer: rank} or {method: {layer: rank}}.",
    ),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Run these seeds instead of the suite's.")]


def cache_folder() -> Path:
    """Where costly results that depend on weights alone are kept: LOREBENCH_CACHE, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorebench"
    return Path(os.environ.get("LOREBENCH_CACHE", default))
