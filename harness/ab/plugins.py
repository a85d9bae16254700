"""Revisions of a plug-in's repository: both run with the code of this program, each with its own plug-in."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path

from harness import imports
from harness.ab.checkouts import Revision
from harness.config import Run
from harness.errors import UserError
from harness.registry import REGISTRY


def check(source: Path, runs: Sequence[Run]) -> None:
    """Raise UserError where the runs would not take their plug-ins from a checkout of `source`."""
    choices = [choice for run in runs for choice in run.method]
    named = {f"{module}:" for choice in choices for module in choice.named_modules}
    names = sorted({choice.name for choice in choices} - REGISTRY.keys() | named)
    folder = imports.plugin_folder()
    if not any(":" in name and _is_inside(name, folder, source) for name in names):
        raise UserError(
            f"{source} is not lorebench, and no row has a method module:Class of a file in {folder}; change "
            "into the folder of the plug-in or a clone of lorebench, or give one by --repository"
        )
    for name in names:
        if ":" not in name:
            raise UserError(
                f"method {name!r} is of an installed package, so both revisions would run that; name it by "
                "module:Class"
            )
        elsewhere = _origin(name)
        if elsewhere is not None and elsewhere.is_relative_to(source.resolve()):
            raise UserError(
                f"method {name!r} is found at {elsewhere}, so both revisions would run the working tree; "
                "take the repository off PYTHONPATH, or uninstall the package"
            )


def placed(revision: Revision, source: Path) -> Revision:
    """Return a checkout with the folder in it that stands for the folder of plug-ins in `source`."""
    inside = imports.plugin_folder().resolve().relative_to(source.resolve())
    folder = revision.tree / inside
    if not folder.is_dir():
        raise UserError(f"{revision.spec}: this revision has no folder {inside}, where the plug-ins are")
    return replace(revision, plugins=folder)


def _is_inside(name: str, folder: Path, source: Path) -> bool:
    """Return whether a folder below `source` holds the module of a method."""
    top = name.partition(":")[0].partition(".")[0]
    found = (folder / f"{top}.py", folder / top)
    return any(file.exists() and file.resolve().is_relative_to(source.resolve()) for file in found)


def _origin(name: str) -> Path | None:
    """Return where the module of a method is found without the folder of plug-ins, None where it is not."""
    top = name.partition(":")[0].partition(".")[0]
    path = [entry for entry in sys.path if entry and os.path.realpath(entry) != os.path.realpath(os.curdir)]
    found = PathFinder.find_spec(top, [*imports.named_folders(), *path])
    return Path(found.origin).resolve() if found and found.origin and Path(found.origin).exists() else None
