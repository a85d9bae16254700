"""Where the output of a command goes: `--format` says how it is printed, `--out` what is written besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from harness import files
from harness.errors import UserError, one_line

#: The ending of a file by its format.
ENDINGS = {
    "text": ".txt",
    "md": ".md",
    "csv": ".csv",
    "tex": ".tex",
    "json": ".json",
    "junit": ".xml",
    "html": ".html",
    "parquet": ".parquet",
}
#: In place of a format: a folder for files in several.
FOLDER = "folder"

Out = Annotated[
    list[Path] | None,
    typer.Option("--out", metavar="FILE", help="Also write a file in the format of its ending; repeatable."),
]
Found = TypeVar("Found")
Formats = Mapping[str, Callable[[Found], str | bytes]]


def destinations(
    out: Sequence[Path] | None, formats: Collection[str], folder: bool = False
) -> dict[Path, str]:
    """Return the format of each file of `--out`, `FOLDER` for what is one or has no ending, where allowed.

    UserError, before any work is done, for an ending that says no format and where no file can be written.
    """
    endings = {ENDINGS[name]: name for name in formats if name in ENDINGS}
    found = {}
    for path in out or ():
        if folder and (path.is_dir() or not path.suffix):
            found[path] = FOLDER
            continue
        if path.suffix.lower() not in endings:
            known = ", ".join(endings) + (", or a folder" if folder else "")
            raise UserError(f"--out {path}: its ending says no format; name a file that ends in {known}")
        if not files.can_be_replaced(path):
            raise UserError(f"--out {path}: no file can be written there; choose another")
        found[path] = endings[path.suffix.lower()]
    return found


def publish(
    found: Found,
    form: str,
    to: Mapping[Path, str],
    formats: Formats[Found],
    show: Callable[[Found], None] | None = None,
) -> None:
    """Write what a command found to files in their formats, then print it in one.

    So a reader that goes away loses no file, and what cannot be written is seen at least. `show` prints
    `text`, where that is more than text.
    """
    try:
        for path, kind in to.items():
            _write(path, formats[kind], found)
    finally:
        if show is not None and form == "text":
            show(found)
        else:
            typer.echo(formats[form](found), nl=False)
    for path in to:
        typer.echo(f"written: {path}", err=True)


def _write(path: Path, make: Callable[[Found], str | bytes], found: Found) -> None:
    try:
        files.replace(path, make(found))
    except (OSError, ValueError, ImportError) as error:  # of the file, or of a library that makes it
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"--out {path}: cannot be written: {reason}; choose another") from error
