"""Files: the root of the project, the folder of caches, atomic writing, hashes of contents. No torch."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from harness.credentials import shown
from harness.errors import UserError

#: The folder that holds `harness`, `methods` and `benchmarks`.
ROOT = Path(__file__).resolve().parents[1]
#: What Git leaves in place of a large file that was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
#: The version of a package that is not installed.
ABSENT = "absent"
#: The mode of files that may hold a user's text.
PRIVATE = stat.S_IRUSR | stat.S_IWUSR
#: Errors of `fsync` on file systems that do not have it.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS, errno.ENOSYS, errno.EBADF)


def cache_folder() -> Path:
    """Return the folder of caches, made for its owner alone where it is missing.

    LOREBENCH_CACHE, else `lorebench` in the user's cache; a variable that is empty is none. UserError for a
    folder into which somebody else may write, since text, weights and code are read from it.
    """
    given, base = os.environ.get("LOREBENCH_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification).
    folder = (
        from_user(given)
        if given
        else from_user(base if Path(base).is_absolute() else "~/.cache") / "lorebench"
    )
    folder = folder.absolute()
    with suppress(OSError):  # what cannot be stored there is made again
        private_folder(folder)
    _refuse_shared(folder)
    return folder


def _refuse_shared(folder: Path) -> None:
    try:
        found, me = folder.stat(), os.geteuid()
    except (OSError, ValueError, AttributeError):
        return
    reason = "others may write there" if found.st_mode & stat.S_IWOTH else None
    if found.st_uid not in (me, 0) and me != 0:
        reason = "it belongs to somebody else"
    if reason is not None:
        raise UserError(
            f"{folder}: {reason}, and lorebench reads weights and code from its cache; "
            "set LOREBENCH_CACHE to a folder of your own, or change its owner and mode"
        )


def from_user(text: str | Path, option: str = "") -> Path:
    """Return a path as a person gives it, `~` filled in; UserError for one that no file can have."""
    given = f"{option} {shown(str(text))}".lstrip()
    if "\0" in str(text):
        raise UserError(f"{given}: a path cannot hold the character \\0")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{given}: no such user; write the path without `~`") from error


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

    A reader sees the old file or the new one, never half of one. After an error `path` is as before and the
    temporary file is gone. OSError where the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            _sync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # what failed before is what is to be told
            temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def _sync(file: int) -> None:
    """Wait until a file is on the disk; a file system that cannot tell is taken at its word."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            _sync(file)
        finally:
            os.close(file)


def replace(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8 with its line ends as given; raises OSError as `replacing`.

    A device or a pipe, such as /dev/stdout, is written to and stays.
    """
    data = content if isinstance(content, bytes) else content.encode()
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def can_be_replaced(path: Path) -> bool:
    """Return whether `replace` can write a file; nothing is written to it."""
    try:
        if path.exists() and not path.is_file():
            return not path.is_dir() and os.access(path, os.W_OK)
        temporary = _beside(path)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except (OSError, ValueError):
        return False
    return True


def writable_folder(path: Path) -> Path:
    """Make a folder and return it; UserError where it cannot be made or a file in it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made: {error.strerror}; choose another folder") from error
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written to: {error.strerror}; choose another folder") from error
    return path


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it, that only its owner may enter, whatever the umask; return it.

    One that is there already stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=PRIVATE | stat.S_IXUSR)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(PRIVATE | stat.S_IXUSR)
    return path


def private(path: str | Path, flags: int) -> int:
    """Open a file that only its owner may read, whatever the umask: an `opener` for `open`."""
    file = os.open(path, flags, PRIVATE)
    with suppress(OSError):  # a file system without modes
        if stat.S_ISREG(os.fstat(file).st_mode):  # never a device such as /dev/null
            os.fchmod(file, PRIVATE)
    return file


def visible(folder: Path, *patterns: str) -> list[Path]:
    """Return what is in a folder and matches a pattern, in order.

    Names that begin with a dot are passed over, below the folder also of folders: they are the system's, an
    editor's, or half written.
    """
    above = len(folder.parts)
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    shown = (path for path in found if not any(part[0] == "." for part in path.parts[above:]))
    return sorted(shown, key=lambda path: path.parts)  # as paths compare, which takes longer


def out_of_room(error: BaseException | None) -> bool:
    """Return whether an exception, or one that it came from, says that a disk or a quota is full.

    Libraries that write in other languages say so in words alone.
    """
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the contents of files end to end; it does not show where one file ends."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
