"""Files: the root of the project, the folder of caches, atomic writing, hashes of contents. No torch."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from harness.credentials import shown
from harness.errors import UserError

#: The folder that holds `harness`, `methods` and `benchmarks`.
ROOT = Path(__file__).resolve().parents[1]
#: The version of a package that is not installed.
ABSENT = "absent"


def cache_folder() -> Path:
    """Return the folder of caches: LOREBENCH_CACHE, else `lorebench` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorebench"
    return Path(os.environ.get("LOREBENCH_CACHE", default))


def from_user(text: str | Path) -> Path:
    """Return a path as a person gives it, `~` filled in; UserError for one that no file can have."""
    if "\0" in str(text):
        raise UserError(f"{shown(str(text))}: a path cannot hold the character \\0")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{shown(str(text))}: no such user; write the path without `~`") from error


def is_there(path: Path) -> bool:
    """Return whether something is at a path; a name that is too long, or may not be seen, is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@functools.cache
def installed(package: str) -> str:
    """Return the version of an installed package, ABSENT without one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ABSENT


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it replaces `path`, bytes on disk first.

    A reader sees the old file or the new one, never half of one. After an error `path` is as before.
    OSError where the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8 with its line ends as given; raises OSError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the contents of files end to end; it does not show where one file ends."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
