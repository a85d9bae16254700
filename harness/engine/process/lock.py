"""An exclusive lock on a name, which ends with the process that holds it, on local and shared file systems.

The lock is a file that names its holder. Where the system has `flock`, the kernel knows whether the holder
lives, at least on one machine. Across machines, and where `flock` is not supported, the holder touches the
file every `HEARTBEAT_S` seconds, and a file that nobody touched for `STALE_S` seconds is taken over. No
clocks are compared for that: who waits watches the file. A holder that ends in order leaves no file.
No torch.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.engine.process.interrupts import interruptible, shielded

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

HEARTBEAT_S = 15.0
#: Longer than a file system shared by network may show old times of a file: 60 s by default on NFS.
STALE_S = 90.0
#: The same for a file that is still empty: its holder was killed before it wrote, a moment after making it.
EMPTY_S = 5.0
#: Without watching, a file of another machine is stale when no difference of clocks can explain its age.
ABANDONED_S = 3600.0
#: After a lock was taken over by writing into its file: the time for another that did the same to write, too.
SETTLE_S = 0.5
#: Seconds by which two readings of the start of one process may differ.
CLOCK_S = 2.0
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
MOST_TRIES = 100
LOOK_S = 0.01
POLL_S = 0.5


class Lock:
    """One lock; `take` does not wait for its holder. A file in place that cannot be opened is an OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: The process that held the lock when `take` last returned False, for people.
        self.holder = "another process"
        self._file: int | None = None
        self._kernel = False
        self._mine = b""
        self._seen: tuple[object, float] | None = None

    def take(self) -> bool:
        """Return whether this process holds the lock from now on."""
        for _ in range(MOST_TRIES):
            file, created = self._open()
            if file is None:
                continue
            try:
                taken = self._take(file, created)
            except BaseException:
                if created:
                    self.path.unlink(missing_ok=True)
                os.close(file)
                raise
            if taken:
                self._file = file
                self._stop = threading.Event()
                threading.Thread(target=_touch, args=(file, self._stop), daemon=True).start()
                return True
            os.close(file)
            if taken is not None:
                return False
        return False  # taken and given back each time: others are at work

    def wait(self, waiting: Callable[[], None]) -> None:
        """Take the lock as soon as it is free; call `waiting` first where another process holds it."""
        told = False
        try:
            with shielded():  # a signal comes between two tries, or once the lock is held
                while not self.take():
                    with interruptible():
                        if not told:
                            waiting()
                        told = True
                        time.sleep(POLL_S)
        except BaseException:
            self.give()
            raise

    def give(self) -> None:
        """Give the lock back and remove its file, unless it was lost meanwhile."""
        if self._file is None:
            return
        self._stop.set()
        if self.held():
            with suppress(OSError):
                self.path.unlink()  # before the kernel lets others in, who then find that their file is gone
        os.close(self._file)
        self._file = None

    def held(self) -> bool:
        """Return whether the lock is still this process's: one that slept too long may have lost it."""
        if self._file is None:
            return False
        try:
            return self._is_in_place(self._file) and self.path.read_bytes() == self._mine
        except OSError:
            return False

    @property
    def inherited(self) -> tuple[int, ...]:
        """The descriptor that a child may inherit, so that the lock lasts until the child has ended, too."""
        return (self._file,) if self._file is not None and self._kernel else ()

    # ------------------------------------------------------------------------------------------ parts
    def _open(self) -> tuple[int | None, bool]:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        with suppress(FileExistsError):
            return os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):  # given back since
            return os.open(self.path, flags), False
        return None, False

    def _take(self, file: int, created: bool) -> bool | None:
        """Return whether the lock was taken, None where its file was replaced meanwhile."""
        kernel = _flock(file)
        for _ in range(MOST_TRIES if created else 0):
            if kernel is not False:
                break
            time.sleep(LOOK_S)  # another that looks whether this file is held, which takes no time
            kernel = _flock(file)
        content = _read(file)
        created = created and not content  # one that was stopped before it locked its file has lost it
        if kernel is False:
            if created:
                self.path.unlink(missing_ok=True)
            self.holder = _described(content)
            return False
        if not self._is_in_place(file):
            return None
        if not created and self._lives(file, content, bool(kernel)):
            self.holder = _described(content)
            return False
        token = {"process": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
        token |= {"started": None if kernel else _started(os.getpid())}
        token |= {"flock": bool(kernel), "token": secrets.token_hex(8)}
        self._mine, self._kernel = json.dumps(token).encode(), bool(kernel)
        os.pwrite(file, self._mine, 0)
        os.ftruncate(file, len(self._mine))
        with suppress(OSError):
            os.utime(file)  # NFS sends what was written first: others must not see an empty file for long
        if created or (kernel and _holder(content).get("machine") == _machine()):
            return True
        time.sleep(SETTLE_S)  # another machine may have taken it over at the same moment
        return self.path.read_bytes() == self._mine

    def _lives(self, file: int, content: bytes, kernel: bool) -> bool:
        """Return whether the holder that a file names may still live."""
        holder = _holder(content)
        if holder.get("machine") == _machine():
            if kernel and holder.get("flock"):
                return False  # or the kernel would not have let this process in
            return _runs(holder.get("process"), holder.get("started"))
        status = os.fstat(file)
        if abs(time.time() - status.st_mtime) > ABANDONED_S:
            return False
        now = (content, status.st_ino, status.st_mtime_ns)
        if self._seen is None or self._seen[0] != now:
            self._seen = now, time.monotonic()
        return time.monotonic() - self._seen[1] < (STALE_S if content else EMPTY_S)

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.lstat(self.path))
        except FileNotFoundError:
            return False


def holder(path: Path) -> str | None:
    """Return who holds the lock of a file, in words; None where nobody does. Nobody is kept from taking it.

    Of another machine it is told by the time of the file, as of one look, so a difference of clocks matters.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = os.open(path, flags)
    except OSError:
        return None
    try:
        content = _read(file)
        return _described(content) if _is_held(file, content) else None
    except OSError:
        return None
    finally:
        os.close(file)


def _is_held(file: int, content: bytes) -> bool:
    """Return whether the holder that a file names lives, as far as one look can tell."""
    found = _holder(content)
    if found.get("machine") != _machine():
        return abs(time.time() - os.fstat(file).st_mtime) < STALE_S
    if not found.get("flock") or fcntl is None:
        return _runs(found.get("process"), found.get("started"))
    try:
        os.kill(int(found["process"]), 0)  # first, so that no lock of a dead process is touched
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except PermissionError:
        return True  # of another user
    except (OSError, ValueError, TypeError, LookupError) as error:
        return getattr(error, "errno", None) in HELD
    return False  # its number went to another process


def _flock(file: int) -> bool | None:
    """Return whether the kernel gave the lock to this process, None where it does not support that."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def _touch(file: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(file)


def _read(file: int) -> bytes:
    return os.pread(file, 4096, 0)


def _holder(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        holder = json.loads(content)
        if isinstance(holder, dict):
            return holder
    return {}


def _described(content: bytes) -> str:
    holder = _holder(content)
    return f"process {holder['process']} on {holder['host']}" if "host" in holder else "another process"


def _machine() -> str:
    """Name the running system and its numbering of processes: containers of one host may share its name."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _runs(process: object, started: object) -> bool:
    """Return whether a process still runs; numbers of processes are used again, hence its start."""
    if not isinstance(process, int) or not isinstance(started, float):
        return False
    found = _started(process)
    return found is not None and abs(found - started) < CLOCK_S


def _started(process: int) -> float | None:
    """Return when a process started, None if there is none."""
    import psutil

    try:
        return psutil.Process(process).create_time()
    except psutil.Error:
        return None
