"""The records of one side of a comparison; what is no sound record is set aside, never compared.

What is sound is decided by `harness.tables.records`, for tables and comparisons alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.record import Record
from harness.tables.format import plain
from harness.tables.records import NOTE_LENGTH, files, machine, sound, there


@dataclass(frozen=True)
class Loaded:
    """A record and where it was read."""

    record: Record
    path: Path

    @property
    def folder(self) -> Path:
        """Where the run left its samples."""
        return self.path.with_suffix("")


@dataclass(frozen=True)
class Side:
    """The sound records of a folder or file, and a line for each other file."""

    records: tuple[Loaded, ...]
    set_aside: tuple[str, ...]


def load(path: Path) -> Side:
    """All records of a file, a folder, or a folder above; UserError where there is none of these."""
    if not there(path):
        raise UserError(f"{path}: no such file or folder; give a record or a folder of records")
    root = path if path.is_dir() else path.parent
    found: list[Loaded] = []
    aside: list[str] = []
    known: dict[tuple[str, ...], Path] = {}
    for file in files(path) if path.is_dir() else [path]:
        try:
            read = sound(file)
        except UserError as error:
            aside.append(_note(file, root, str(error).removeprefix(f"{file}: ")))
            continue
        twin = known.setdefault(_identity(read), file)
        if twin is file:
            found.append(Loaded(read, file))
        else:
            aside.append(_note(file, root, f"the same run as {twin.relative_to(root)}"))
    return Side(tuple(found), tuple(aside))


def _note(file: Path, root: Path, reason: str) -> str:
    return plain(f"{file.relative_to(root)}: {reason}", NOTE_LENGTH)


def _identity(read: Record) -> tuple[str, ...]:
    """What one side may have once: a run on a machine by a meter."""
    return read.suite, read.run_id, *machine(read)
