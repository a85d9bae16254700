"""Find and read the records of tables; skip files that hold no valid record, with a reason.

A record is valid if a run can have made it: its values keep the limits that `harness.record` declares.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness import record, record_index
from harness.errors import UserError, counted
from harness.files import visible
from harness.record import Record
from harness.tables.format import plain

#: <row>/<machine>/<suite>/<run>.json below a side of `ab` is the deepest place of a record.
DEEPEST = 4
#: Characters of a line about a skipped file.
NOTE_LENGTH = 300
#: So many skipped files are named in a report; all are counted.
MOST_NOTES = 20

Answer = tuple[Path, Record | None, str]


def find(path: Path, deepest: int = DEEPEST) -> Iterator[Path]:
    """Find JSON files down to `deepest` levels, in the order of their paths; a file is found as it is.

    What a run leaves in its own folder is passed over. UserError where nothing is, or may be read.
    """
    try:
        if path.is_dir():
            os.scandir(path).close()  # a walk would pass over a folder that may not be read
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{plain(str(path), NOTE_LENGTH)}: cannot be read: {error.strerror}") from error
    if not exists:
        raise UserError(f"{path}: no such file or folder; give a record or a folder of records")
    return _walk(path, deepest) if path.is_dir() else iter([path])


def _walk(folder: Path, deepest: int) -> Iterator[Path]:
    for place, folders, found in os.walk(folder):
        inside = Path(place)
        depth = len(inside.relative_to(folder).parts)
        owned = {name for name in folders if f"{name}.json" in found or (inside / name / "job.json").exists()}
        seen = {name for name in folders if name[0] != "."} - owned  # a hidden one holds what is half written
        folders[:] = sorted(seen) if depth < deepest - 1 else []
        yield from (inside / name for name in sorted(found) if name.endswith(".json") and name[0] != ".")


def read(path: Path) -> Record:
    """Read a valid record; UserError says in one line why a file holds none."""
    _, found, error = record_index.read_one(path)
    if found is None:
        raise error or UserError("not a record")
    return found


def read_below(path: Path, deepest: int = DEEPEST) -> Iterator[Answer]:
    """Yield the files that `find` finds, as `read_each`; a file that is given itself may have any name."""
    paths = find(path, deepest)
    return _reasons(record_index.read_each(paths) if path.is_dir() else map(record_index.read_one, paths))


def read_each(paths: Iterable[Path], suite: str | None = None) -> Iterator[Answer]:
    """Yield each file with its record, or with None and the reason why it is skipped.

    A file is skipped that is not named after its run; given a suite, also a record of another.
    """
    return _reasons(record_index.read_each(paths, suite))


def _reasons(answers: Iterable[record_index.Answer]) -> Iterator[Answer]:
    for path, found, error in answers:
        # A report is the same wherever the folder is.
        reason = str(error).removeprefix(f"{path}: ").replace(str(path), path.name) if error else ""
        yield path, found, reason


def load(folder: Path) -> tuple[list[Record], list[str]]:
    """Read the valid records of one suite's folder; notes on the other files. UserError without a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of records; run the suite first")
    files = list(read_each(visible(folder, "*.json"), folder.name))
    skipped = [f"Skipped {path.name}: {reason}" for path, found, reason in files if found is None]
    notes = [plain(note, NOTE_LENGTH) for note in skipped[:MOST_NOTES]]
    if skipped:
        notes.append(f"{len(skipped)} of {counted(len(files), 'file')} skipped: no valid record.")
    return [found for _, found, _ in files if found is not None], notes


def only_valid(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """Split records that were read without limits: the valid ones, and a note on each other one."""
    valid, notes = [], []
    for item in records:
        try:
            if not item.beside.limits:
                record.validated(item, item.run_id)
            valid.append(item)
        except UserError as error:
            notes.append(f"Skipped {error}; move it away and run again")
    return valid, notes
