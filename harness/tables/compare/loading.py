"""The records of one side of a comparison; what is no sound record is set aside, never compared.

What is sound is decided by `harness.tables.soundness`, for tables and comparisons alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.record import Record
from harness.tables.cells import plain
from harness.tables.soundness import sound

#: <row>/<machine>/<suite>/<run>.json below a side of `ab` is the deepest place of a record.
DEEPEST = 4
NOTE_LENGTH = 240


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


def there(path: Path) -> bool:
    """Whether a path leads to a file or folder; UserError for one that cannot be, or may not be read."""
    try:
        if path.is_dir():
            os.scandir(path).close()  # a walk would pass over a folder that may not be read
        return path.exists()
    except OSError as error:
        raise UserError(f"{plain(str(path), NOTE_LENGTH)}: cannot be read: {error.strerror}") from error


def files(folder: Path, deepest: int = DEEPEST) -> Iterator[Path]:
    """JSON files in the order of their paths, without what a run leaves in its own folder."""
    for place, folders, found in os.walk(folder):
        inside = Path(place)
        depth = len(inside.relative_to(folder).parts)
        owned = {name for name in folders if f"{name}.json" in found or (inside / name / "job.json").exists()}
        folders[:] = sorted(set(folders) - owned) if depth < deepest - 1 else []
        yield from (inside / name for name in sorted(found) if name.endswith(".json") and name[0] != ".")


def _note(file: Path, root: Path, reason: str) -> str:
    return plain(f"{file.relative_to(root)}: {reason}", NOTE_LENGTH)


def machine(read: Record) -> tuple[str, ...]:
    """The machine of a run and its meter; with other threads it is another machine."""
    here, meter = read.environment, read.memory.meter if read.memory else ""
    return (here.device, str(here.cpu_threads), meter) if here else ("", "", meter)


def _identity(read: Record) -> tuple[str, ...]:
    """What one side may have once: a run on a machine by a meter."""
    return read.suite, read.run_id, *machine(read)
