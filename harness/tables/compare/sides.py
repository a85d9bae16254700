"""The records of one side of a comparison; files that hold no valid record are set aside, never compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.record import Record
from harness.tables.format import plain
from harness.tables.records import NOTE_LENGTH, find, read_each


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
    """The valid records of a folder or file, and a line for each other file."""

    records: tuple[Loaded, ...]
    skipped: tuple[str, ...]


def load(path: Path) -> Side:
    """All records of a file, a folder, or a folder above; UserError where there is none of these."""
    root = path if path.is_dir() else path.parent
    found: list[Loaded] = []
    aside: list[str] = []
    known: dict[tuple[str, ...], Path] = {}
    for file, read, reason in read_each(find(path)):
        if read is None:
            aside.append(_note(file, root, reason))
            continue
        twin = known.setdefault(_identity(read), file)
        if twin is file:
            found.append(Loaded(read, file))
        else:
            aside.append(_note(file, root, f"the same run as {twin.relative_to(root)}"))
    return Side(tuple(found), tuple(aside))


def machine(read: Record) -> tuple[str, ...]:
    """Return the machine of a run and its meter; with other threads it is another machine."""
    here, meter = read.environment, read.memory.meter if read.memory else ""
    return (here.device, str(here.cpu_threads), meter) if here else ("", "", meter)


def _note(file: Path, root: Path, reason: str) -> str:
    return plain(f"{file.relative_to(root)}: {reason}", NOTE_LENGTH)


def _identity(read: Record) -> tuple[str, ...]:
    """What one side may have once: a run on a machine by a meter."""
    return read.suite, read.run_id, *machine(read)
