"""Load the records of a suite over time, from folders and their earlier versions in git, and select some.

A record that is found twice counts once; a file that is no valid record is skipped, with a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from harness import record
from harness import suite as suites
from harness.errors import UserError, nearest
from harness.record import Record
from harness.record_index import LARGEST_RECORD, misplaced
from harness.tables import records
from harness.tables.aggregate import methods
from harness.tables.format import plain
from harness.tables.history import git_log
from harness.tables.history.series import Quantity
from harness.tables.records import NOTE_LENGTH

#: People keep a folder of results per commit, or per machine and day: deeper than a side of a comparison.
DEEPEST = 12
LARGEST_SEED = 1 << 62
#: Fields of a record that a selection compares as they are; other keys are settings of the config.
OWN = ("label", "seed", "repeat", "config_id", "run_id", "tier")
QUANTITY = "quantity"


@dataclass(frozen=True)
class Found:
    """A record with the file that it was read from; in front of it the commit of an earlier version."""

    record: Record
    source: str

    @cached_property
    def names(self) -> tuple[int, int, str, str | None, str]:
        """Seed, repeat, run id, start and source of the points that stand for it."""
        item = self.record
        when = plain(item.started_at, 40) if item.started_at else None
        return item.seed, item.repeat, item.run_id, when, plain(self.source)


@dataclass
class Collection:
    """The records of a suite in the order in which they were found, with skipped files and notes."""

    suite: str
    found: list[Found] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unfinished: int = 0
    _known: set[str] = field(default_factory=set)

    def add(self, item: Record, source: str) -> None:
        """Add a record, unless it is of another suite, unfinished, or known already."""
        if item.suite != self.suite:
            self.others.add(plain(item.suite, NOTE_LENGTH))
        elif max(item.seed, item.repeat) >= LARGEST_SEED:
            self.skip(source, "seed or repeat is larger than any table holds")
        elif (key := identity(item)) not in self._known:
            if item.outcome.status == "interrupted":
                self.unfinished += 1
                return  # a later version of this run may have ended
            self._known.add(key)
            self.found.append(Found(item, source))

    def skip(self, source: str, reason: str) -> None:
        """Note a file that is not used."""
        self.skipped.append(plain(f"{source}: {reason}", NOTE_LENGTH))


def identity(item: Record) -> str:
    """Return a hash that two records of one run share: over its id, start, device and code.

    Without a start, over the whole record. Starts are in whole seconds, and both runs of an interleaved pair
    may have the same.
    """
    here = item.environment
    environment = (here.device, here.git_sha, here.git_dirty_sha256) if here else ()
    meter = item.memory.meter if item.memory else ""
    parts = (item.suite, item.run_id, item.started_at, meter, *environment) if item.started_at else (item,)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def collect(folders: Sequence[Path], suite: str, committed: bool = False) -> Collection:
    """Return the records of a suite below the folders, and in their git history; UserError without any."""
    collection = Collection(suite)
    for folder in folders:
        for file, item, reason in records.read_below(folder, DEEPEST):
            if item is None:
                collection.skip(str(file), reason)
            else:
                collection.add(item, str(file))
    if committed:
        for folder in folders:
            _add_versions(collection, folder if folder.is_dir() else folder.parent)
    if not collection.found:
        raise UserError(_nothing(collection, folders))
    return collection


def _add_versions(collection: Collection, folder: Path) -> None:
    """Add earlier versions of the records below a folder; each content is read once under each file name."""
    first: dict[tuple[str, str], git_log.Version] = {}
    for version in git_log.versions(folder):
        first.setdefault((version.blob, version.name), version)
    if not first:
        collection.notes.append(plain(f"no record below {folder} was ever committed"))
    contents = git_log.contents(folder, [blob for blob, _ in first], LARGEST_RECORD)
    for version, content in zip(first.values(), contents, strict=True):
        source = f"{version.commit[:7]}:{version.path}"
        try:
            if content is None:
                raise UserError(f"missing, or larger than {LARGEST_RECORD >> 20} MiB")
            text = content.decode("utf-8")
            item = record.parse(text, source, limits=True)
            if wrong := misplaced(version.name, item):
                raise UserError(wrong)
            collection.add(item.placed(partial(git_log.beside, folder, version), limits=True), source)
        except UnicodeDecodeError:
            collection.skip(source, "no text in UTF-8")
        except UserError as error:
            collection.skip(source, str(error).removeprefix(f"{source}: "))


def _nothing(collection: Collection, folders: Sequence[Path]) -> str:
    """Explain why there is nothing to show, and what to do."""
    why = f"run: lorebench run {collection.suite} --results {folders[0]}"
    if collection.others:
        why = f"there are records of other suites, {nearest(collection.suite, collection.others)}"
    elif collection.skipped:
        why = f"skipped: {collection.skipped[0]}"
    return plain(f"no records of suite {collection.suite!r} under {', '.join(map(str, folders))}; {why}")


# --------------------------------------------------------------------------------------- selection
@dataclass(frozen=True)
class Selection:
    """The records and quantities that `--only KEY=VALUE` selects.

    Of several conditions on one key any suffices; all keys must be met.
    """

    wanted: dict[str, list[Any]]

    @classmethod
    def of(cls, conditions: Sequence[str]) -> Selection:
        """Parse conditions; UserError where one is not KEY=VALUE."""
        wanted: dict[str, list[Any]] = {}
        for text in conditions:
            key, value = suites.parse_condition(text)
            wanted.setdefault(key, []).append(value)
        return cls(wanted)

    @property
    def quantity(self) -> str:
        """The selected quantities as text."""
        return " ".join(map(str, self.wanted.get(QUANTITY, ())))

    def takes(self, record: Record) -> bool:
        """Return whether a record meets all conditions but those on the quantity."""
        return all(_holds(record, key, values) for key, values in self.wanted.items() if key != QUANTITY)

    def shows(self, quantity: Quantity) -> bool:
        """Return whether a quantity is selected: by its name, key or kind, or without any condition."""
        names = {quantity.name, quantity.key, quantity.kind}
        return QUANTITY not in self.wanted or not names.isdisjoint(map(str, self.wanted[QUANTITY]))


def _holds(record: Record, key: str, values: Sequence[Any]) -> bool:
    if key in OWN:
        return getattr(record, key) in values
    if key == "method":
        return record.label in values or not set(methods(record)).isdisjoint(map(str, values))
    value: Any = record.config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return value in values
