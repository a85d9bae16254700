"""Read many records fast: keep in the folder of caches what was read before, by the state of each file.

The index may be thrown away at any time. One that is corrupt, of another version of the schema or of another
folder is ignored and written again; an entry counts only for a file whose times, size and inode are the same,
and whose last change was not just before the index was written. Only valid records are kept.

Most of what ten thousand records say they say alike: equal parts are stored once, and are one object in all
records of a folder. So the parts of a record that was read are never changed.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import marshal
import os
import stat
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from harness import files, record
from harness.errors import UserError
from harness.record import Beside, Part, Record

#: Folders with fewer records are read without an index.
LEAST = 32
#: Bytes of an index that hold the name of its folder; no system has longer paths.
NAME_WITHIN = 1 << 14
#: A record of ten thousand updates has less than 1 MB.
LARGEST_RECORD = 64 << 20
#: Nanoseconds for which a file may change again without another time, on the coarsest file systems.
GRANULARITY_NS = 3_000_000_000
MAGIC = b"lorebench records\n"

State = tuple[int, int, int, int]
Entry = tuple[State, dict[str, Any]]
Answer = tuple[Path, Record | None, UserError | None]


def read_each(paths: Iterable[Path], suite: str | None = None) -> Iterator[Answer]:
    """Yield each file with its valid record, or with None and what is wrong; a folder at a time.

    A file that is not named after its run is wrong, too, as is a record of another suite than the one given.
    """
    for folder, inside in itertools.groupby(paths, key=lambda path: path.parent):
        several = list(inside)
        answers: Iterable[Answer] = map(read_one, several)
        if len(several) >= LEAST:
            with _uncollected():
                answers = _Folder(folder).read(several)
        for answer in answers:
            path, item, _ = answer
            wrong = misplaced(path.name, item, suite) if item else None
            yield (path, None, UserError(wrong)) if wrong else answer


def misplaced(name: str, item: Record, suite: str | None = None) -> str | None:
    """Return why a file of this name, in a suite's folder, is not the place of a record; None where it is."""
    own = f"{item.run_id}.json"
    if name != own:
        return f"a copy of run {item.run_id}: named after its run it would be {own}"
    if suite not in (None, item.suite):
        return f"a record of suite {item.suite!r} in a folder of suite {suite!r}"
    return None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Search no garbage for a while, and never among the values made then, which all stay.

    With ten thousand records that search takes longer than all else.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def read_all(folder: Path) -> list[Record]:
    """Read the records of one suite's folder, in the order of their files, also those beyond limits.

    UserError for the first file that is no record, or that is not named after its run, its folder after its
    suite.
    """
    found = []
    for path, item, _ in read_each(files.visible(folder, "*.json")):
        item = item or record.read(path)
        if wrong := misplaced(path.name, item, folder.name):
            raise UserError(f"{path}: {wrong}; move it away and run again")
        found.append(item)
    return found


def read_one(path: Path) -> Answer:
    """Return a file of any name with its valid record, or with None and what is wrong."""
    try:
        _state(path)
        return path, record.read(path, limits=True), None
    except UserError as error:
        return path, None, error


def _state(path: Path) -> State:
    """Return what changes when a file does; UserError where it is no file of a sane size."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError("not a regular file") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError("not a regular file")
    if found.st_size > LARGEST_RECORD:
        raise UserError(f"larger than {LARGEST_RECORD >> 20} MiB")
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class _Folder:
    """The records of one folder and their index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = os.fsencode(folder.absolute())
        digest = hashlib.sha256(self.name).hexdigest()[:16]
        self._beside = functools.partial(record.bytes_beside, folder)
        self.file = files.cache_folder() / "records" / f"{digest}.index"

    def read(self, paths: Sequence[Path]) -> list[Answer]:
        """Return each file with its record, and write the index where it has changed."""
        known, kept = self._load(), dict[str, Entry]()
        build = _Builder(Beside(self._beside, limits=True)).record
        found: list[Answer] = []
        fresh = False
        for path in paths:
            try:
                state = _state(path)
            except UserError as error:
                found.append((path, None, error))
                continue
            entry = known.get(path.name)
            if entry is not None and entry[0] == state:
                kept[path.name] = entry
                found.append((path, build(entry[1]), None))
                continue
            found.append(read_one(path))
            if item := found[-1][1]:
                kept[path.name] = state, item.model_dump(exclude_none=True)
                fresh = True
        if fresh or len(kept) != len(known):
            self._save(kept)
        return found

    def _load(self) -> dict[str, Entry]:
        """Return the entries of the index, none where it cannot be used."""
        with suppress(OSError, ValueError, EOFError, TypeError):
            content = self.file.read_bytes()
            head = MAGIC + _version()
            body = memoryview(content)[len(head) + 32 :]
            if (
                content.startswith(head)
                and hashlib.sha256(body).digest() == content[len(head) : len(head) + 32]
            ):
                name = marshal.dumps(self.name)
                if bytes(body[: len(name)]) == name:
                    return marshal.loads(body[len(name) :])
        return {}

    def _save(self, entries: dict[str, Entry]) -> None:
        """Write the index; a folder that cannot be written to has none."""
        latest = time.time_ns() - GRANULARITY_NS
        settled = {name: entry for name, entry in entries.items() if max(entry[0][:2]) < latest}
        equal = _Equal()
        settled = {name: (state, equal.once(content)) for name, (state, content) in settled.items()}
        body = marshal.dumps(self.name) + marshal.dumps(settled)
        with suppress(OSError):
            files.replace(self.file, MAGIC + _version() + hashlib.sha256(body).digest() + body)
            _remove_left_over(self.file.parent)


@functools.cache
def _remove_left_over(indexes: Path) -> None:
    """Remove, once per process, the indexes of folders that are gone, and what is no index."""
    for path in files.visible(indexes, "*.index"):
        with suppress(OSError):
            with path.open("rb") as file:
                head = file.read(NAME_WITHIN)
            folder = _folder_of(head)
            if folder is None or not folder.is_dir():
                path.unlink(missing_ok=True)


def _folder_of(head: bytes) -> Path | None:
    """Return the folder that an index of any version is of, given its beginning; None for anything else."""
    with suppress(ValueError, EOFError, TypeError):
        found = marshal.loads(head[len(MAGIC) + 64 :])
        if isinstance(found, bytes) and b"\0" not in found:
            return Path(os.fsdecode(found))
    return None


@functools.cache
def _version() -> bytes:
    """Return a hash of what decides whether and how a record is read."""
    digest = hashlib.sha256(f"{sys.version} {marshal.version} {record.SCHEMA_VERSION}".encode())
    for source in (record.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.digest()


# ------------------------------------------------------------------------------ records from their parts
class _Equal:
    """Lists and sections of plain values, of equal ones the first."""

    def __init__(self) -> None:
        self._first: dict[bytes, Any] = {}
        self._known: dict[int, Any] = {}

    def once(self, value: Any) -> Any:
        """Return a value in which every list and section is the first of its equals."""
        if not isinstance(value, (list, dict)):
            return value
        if id(value) not in self._known:
            parts: Any = (
                {key: self.once(item) for key, item in value.items()}
                if isinstance(value, dict)
                else [self.once(item) for item in value]
            )
            # In version 2 the bytes tell 1 from 1.0 and True, and say nothing of shared objects.
            first = self._first.setdefault(marshal.dumps(value, 2), parts)
            self._known[id(value)] = first
            self._known[id(first)] = first
        return self._known[id(value)]


class _Builder:
    """Makes the records of valid values, which are not checked again; equal parts are one object."""

    def __init__(self, beside: Beside) -> None:
        self._beside = beside
        self._made: dict[type[Part], dict[int, Any]] = defaultdict(dict)

    def record(self, content: dict[str, Any]) -> Record:
        """Return a record."""
        item: Record = self._part(Record, content)
        object.__setattr__(item, "__pydantic_private__", {"_beside": self._beside})
        return item

    def _shared(self, cls: type[Part], content: dict[str, Any]) -> Any:
        """Return the part that was made of these values, which must live as long as this object."""
        known = self._made[cls]
        if (made := known.get(id(content))) is None:
            made = known[id(content)] = self._part(cls, content)
        return made

    def _part(self, cls: type[Part], content: dict[str, Any]) -> Any:
        made = cls.__new__(cls)
        inner, blank, defaults = _fields(cls)
        values = blank | content
        for name, part, mapping in inner:
            if (value := content.get(name)) is None:
                continue
            if mapping:
                values[name] = {key: self._shared(part, item) for key, item in value.items()}
            elif isinstance(value, list):
                values[name] = [self._shared(part, item) for item in value]
            else:
                values[name] = self._shared(part, value)
        for name, default in defaults:
            if name not in content:
                values[name] = default()
        put = object.__setattr__
        put(made, "__dict__", values)
        put(made, "__pydantic_fields_set__", set(content))
        put(made, "__pydantic_extra__", None)
        put(made, "__pydantic_private__", None)
        return made


@functools.cache
def _fields(
    cls: type[Part],
) -> tuple[list[tuple[str, type[Part], bool]], dict[str, Any], list[tuple[str, Callable[[], Any]]]]:
    """Return the fields of a part that hold parts, all fields in order, and how to make some defaults.

    A field has the class of its parts, and whether it is a section of them by name. Defaults that cannot
    change stand among all fields.
    """
    inner: list[tuple[str, type[Part], bool]] = []
    blank: dict[str, Any] = {}
    defaults: list[tuple[str, Callable[[], Any]]] = []
    for name, field in cls.model_fields.items():
        mapping = getattr(field.annotation, "__origin__", None) is dict
        inner += [(name, part, mapping) for part in _parts(field.annotation)]
        blank[name] = None if field.is_required() else field.default
        if isinstance(field.default, (list, dict)) and not field.default:
            defaults.append((name, type(field.default)))
        elif isinstance(field.default, (list, dict, Part)):
            defaults.append((name, functools.partial(field.get_default, call_default_factory=True)))
    return inner, blank, defaults


def _parts(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts(inner)
