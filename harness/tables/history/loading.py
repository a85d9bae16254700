"""The records of a suite over time: from folders, and from earlier versions of these in git.

Both only ever add. A record that is found twice counts once; a file that holds no valid record is
set aside, with a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import record
from harness.errors import UserError, nearest
from harness.record import Record
from harness.tables import records
from harness.tables.format import plain
from harness.tables.history import git_log
from harness.tables.records import LARGEST_RECORD, NOTE_LENGTH

#: People keep a folder of results per commit, or per machine and day: deeper than a side of a comparison.
DEEPEST = 12
LARGEST_SEED = 1 << 62


@dataclass(frozen=True)
class Found:
    """A record with the file that it was read from; in front of it the commit of an earlier version."""

    record: Record
    source: str


@dataclass
class Collection:
    """The records of a suite in the order in which they were found, and what stood beside them."""

    suite: str
    found: list[Found] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unfinished: int = 0
    _known: set[str] = field(default_factory=set)

    def add(self, item: Record, source: str) -> None:
        """Take a record, unless it is of another suite, has not ended, or is there already."""
        if item.suite != self.suite:
            self.others.add(plain(item.suite, NOTE_LENGTH))
        elif max(item.seed, item.repeat) >= LARGEST_SEED:
            self.refuse(source, "seed or repeat is larger than any table holds")
        elif (key := identity(item)) not in self._known:
            if item.outcome.status == "interrupted":
                self.unfinished += 1
                return  # not known: a later version of this run may have ended
            self._known.add(key)
            self.found.append(Found(item, source))

    def refuse(self, source: str, reason: str) -> None:
        """Set a file aside."""
        self.skipped.append(plain(f"{source}: {reason}", NOTE_LENGTH))


def identity(item: Record) -> str:
    """What makes two records the same run: its id, start, device and code; without a start all that they say.

    Starts are in whole seconds, and both runs of a pair that takes turns may have the same.
    """
    here = item.environment
    environment = (here.device, here.git_sha, here.git_dirty_sha256) if here else ()
    meter = item.memory.meter if item.memory else ""
    parts = (item.suite, item.run_id, item.started_at, meter, *environment) if item.started_at else (item,)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def collect(folders: Sequence[Path], suite: str, committed: bool = False) -> Collection:
    """The records of a suite anywhere below the folders, and in their history; UserError where none is."""
    collection = Collection(suite)
    for folder in folders:
        for file, item, reason in records.read_each(records.find(folder, DEEPEST)):
            if item is None:
                collection.refuse(str(file), reason)
            else:
                collection.add(item, str(file))
    if committed:
        for folder in folders:
            _add_versions(collection, folder if folder.is_dir() else folder.parent)
    if not collection.found:
        raise UserError(_nothing(collection, folders))
    return collection


def _add_versions(collection: Collection, folder: Path) -> None:
    """Earlier versions of the records below a folder; each content is read once."""
    first: dict[str, git_log.Version] = {}
    for version in git_log.versions(folder):
        first.setdefault(version.blob, version)
    if not first:
        collection.notes.append(plain(f"no record below {folder} was ever committed"))
    for version, content in _read(folder, list(first.values())):
        source = f"{version.commit[:7]}:{version.path}"
        try:
            if content is None:
                raise UserError(f"missing, or larger than {LARGEST_RECORD >> 20} MiB")
            text = content.decode("utf-8")
            collection.add(record.parse(text, source, limits=True), source)
        except UnicodeDecodeError:
            collection.refuse(source, "no text in UTF-8")
        except UserError as error:
            collection.refuse(source, str(error).removeprefix(f"{source}: "))


def _read(folder: Path, versions: list[git_log.Version]) -> Iterator[tuple[git_log.Version, bytes | None]]:
    blobs = [version.blob for version in versions]
    yield from zip(versions, git_log.contents(folder, blobs, LARGEST_RECORD), strict=True)


def _nothing(collection: Collection, folders: Sequence[Path]) -> str:
    """Why there is nothing to show, and what to do."""
    where = ", ".join(map(str, folders))
    text = f"no records of suite {collection.suite!r} under {where}"
    if collection.others:
        text += f"; there are records of other suites, {nearest(collection.suite, collection.others)}"
    elif collection.skipped:
        text += f"; skipped: {collection.skipped[0]}"
    else:
        text += f"; run: lorebench run {collection.suite} --results {folders[0]}"
    return plain(text)
