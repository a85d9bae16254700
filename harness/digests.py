"""Hash the contents of files; hashes of large files are remembered until a file changes. No torch.

A remembered hash is trusted only while device, inode, size and both times of the file are the same. It is
stored only when the file was last changed some seconds before it was read: a later change within the same
tick of the file system's clock would not show. Entries may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness import files, strict_json
from harness.errors import UserError

#: Files of fewer bytes are read each time: that takes milliseconds.
LARGE = 8 << 20
#: The coarsest clock of a common file system (FAT) counts in two seconds.
SETTLED_NS = 3 * 10**9
ATTEMPTS = 3

Stamp = list[list[int]]


@dataclass(frozen=True)
class Digests:
    """Hashes of files; those of large ones are remembered below `folder`, where there is one."""

    folder: Path | None = None
    _known: dict[tuple[Path, ...], str] = field(default_factory=dict)

    def of(self, *paths: Path) -> str:
        """Return the SHA-256 of files end to end, as `files.sha256`; each is read once per instance.

        UserError for a file that cannot be read, or that keeps changing while it is read.
        """
        if paths not in self._known:
            try:
                self._known[paths] = self._read(paths)
            except OSError as error:
                raise UserError(f"{error.filename or paths[0]}: cannot be read: {error.strerror}") from error
        return self._known[paths]

    def of_each(self, named: Iterable[tuple[str, Path]]) -> str:
        """Return one hash of the names and contents of files, whatever their order."""
        lines = sorted(f"{name}\0{self.of(path)}\n" for name, path in named)
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def _read(self, paths: Sequence[Path]) -> str:
        for _ in range(ATTEMPTS):
            now, before = time.time_ns(), _stamp(paths)
            large = sum(size for _, _, size, *_ in before) >= LARGE
            if large and (known := self._remembered(before)) is not None:
                return known
            found = files.sha256(*paths)
            if _stamp(paths) == before:
                if large and now - _last_change(before) >= SETTLED_NS:
                    self._remember(before, found)
                return found
        names = ", ".join(path.name for path in paths[:3])
        raise UserError(f"{names}: changes while it is read; wait until it is complete")

    def _entry(self, stamp: Stamp) -> Path | None:
        place = json.dumps([part[:2] for part in stamp])
        name = hashlib.sha256(place.encode()).hexdigest()[:32]
        return self.folder / "digests" / f"{name}.json" if self.folder else None

    def _remembered(self, stamp: Stamp) -> str | None:
        entry = self._entry(stamp)
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(entry.read_bytes()) if entry else {}
            if content["files"] == stamp and content["check"] == _check(stamp, content["sha256"]):
                return str(content["sha256"])
        return None

    def _remember(self, stamp: Stamp, found: str) -> None:
        entry = self._entry(stamp)
        if entry is not None:
            content = {"files": stamp, "sha256": found, "check": _check(stamp, found)}
            with suppress(OSError):  # the next process reads the files again
                files.replace(entry, strict_json.text(content))


def _stamp(paths: Sequence[Path]) -> Stamp:
    """Return device, inode, size, time of the last change of content and of anything, of each file."""
    stats = [path.stat() for path in paths]
    return [[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]


def _last_change(stamp: Stamp) -> int:
    return max(max(part[3:]) for part in stamp)


def _check(stamp: Stamp, found: str) -> str:
    """Return what tells a damaged entry."""
    return hashlib.sha256(f"{stamp} {found}".encode()).hexdigest()[:16]
