"""Fork runs from one process that has imported the libraries: an import costs each run seconds.

The server (`worker fork`) serves one run at a time, on a socket as its standard input: it says `ready`, takes
the arguments of a run with its streams, and answers with the id of the fork and, at its end, the exit code.
A fork is a process like any other: it leads a session of its own, and nothing has run before its own code
but imports. Nobody outlives whom it works for: the server ends when its socket closes, and the kernel ends a
fork when the server dies. No torch.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from select import POLLIN, poll, select
from typing import Self

from harness import imports
from harness.engine.process.interrupts import interruptible

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
READY = b"ready"
#: Bytes of a message, and descriptors of a fork: its streams and what it inherits.
LONGEST, MOST_DESCRIPTORS = 1 << 16, 64
#: Seconds that a server has to import the libraries, or to answer.
PATIENCE_S = 120.0


class Fork:
    """A forked process, with the members of `subprocess.Popen` that a worker needs."""

    def __init__(
        self, server: socket.socket, arguments: Sequence[str], log: int, others: Sequence[int]
    ) -> None:
        """Request a fork; it inherits the descriptors `others`. OSError where the server is gone."""
        self._server = server
        self.returncode: int | None = None
        stdin, to_stdin = os.pipe()
        from_stdout, stdout = os.pipe()
        self.stdin, self.stdout = os.fdopen(to_stdin, "wb"), os.fdopen(from_stdout, "rb")
        try:
            socket.send_fds(server, [json.dumps(arguments).encode()], [stdin, stdout, log, *others])
            answer, (self._end,), *_ = socket.recv_fds(server, LONGEST, 1)
        except (OSError, ValueError) as error:  # closed, or an exit code in place of a process
            self.stdin.close()
            self.stdout.close()
            raise ConnectionError("the server of forks is gone") from error
        finally:
            os.close(stdin)
            os.close(stdout)
        self.pid = int(answer)

    def wait(self) -> int:
        """Return the exit code, negative for a signal, once the process has ended."""
        if self.returncode is None:
            ended = poll()
            ended.register(self._end, POLLIN)
            ended.poll()
            os.close(self._end)
            code = b""
            with suppress(OSError):
                code = self._server.recv(LONGEST)
            self.returncode = int(code) if code else -signal.SIGKILL  # it died with the server
        return self.returncode


class Forks:
    """The server of a sweep: `start` forks a run, or returns None where it has to be a process of its own."""

    def __init__(self, command: Sequence[str], note: Callable[[str], None], wanted: bool = True) -> None:
        """`command` starts a worker; `note` is told once where forks were wanted and cannot be."""
        self._command, self._note = command, note
        self._wanted = wanted and sys.platform == "linux"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._state: object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Wait for a server with the code, folder and variables of now; start one where there is none."""
        if not self._wanted:
            return
        state = _state()
        if self._process is not None and self._process.poll() is None and state == self._state:
            return
        self.close()
        self._state = state
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE_S)
        said = b""
        with suppress(OSError):
            with theirs:
                self._process = subprocess.Popen(
                    [*self._command, "fork"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=imports.environment(),
                    start_new_session=True,
                )
            with interruptible():
                said = self._socket.recv(LONGEST)
        if said != READY:
            self.close()
            self._wanted = False
            why = said.decode() or "there is no process to fork from"
            self._note(f"each run imports the libraries anew: {why}")

    def start(self, argv: Sequence[str], log: int, descriptors: Sequence[int]) -> Fork | None:
        """Fork a process that does what `argv` would; standard error goes to `log`."""
        if self._socket is not None:
            with suppress(ConnectionError):
                return Fork(self._socket, argv[len(self._command) :], log, descriptors)
            self.close()
        return None

    def close(self) -> None:
        """End the server, and with it what it has forked."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None


def _state() -> object:
    """Return what a server must share with a process that starts now."""
    with suppress(OSError):
        files = (path for name in imports.OURS for path in (imports.ROOT / name).rglob("*.py"))
        code = {str(path): path.stat().st_mtime_ns for path in files}
        return code, imports.environment(), Path.cwd()
    return object()  # it changes just now, and so equals nothing


# ---------------------------------------------------------------------------------------- the server
def serve(modules: Sequence[str], variables: dict[str, str]) -> list[str]:
    """Import modules and fork until the socket closes; return in each fork, with its arguments.

    `variables` are set while the modules are imported. The server ends unless it is the only thread.
    """
    parent = socket.socket(fileno=os.dup(0))
    end_with_parent()
    plugins = sys.path.pop()  # only a run may import them
    _import(modules, variables)
    gc.collect()
    gc.freeze()
    if not (trial := os.fork()):
        os._exit(0)
    os.waitpid(trial, 0)  # from now on libraries that stop their threads before a fork have done so
    others = len(list(Path("/proc/self/task").iterdir())) - 1
    parent.send(f"forks are unsafe beside other threads ({others})".encode() if others else READY)
    while not others:
        request, streams, *_ = socket.recv_fds(parent, LONGEST, MOST_DESCRIPTORS)
        if not request:
            break
        server = os.getpid()
        if not (process := os.fork()):
            _begin(server, parent, streams)
            sys.path.append(plugins)
            sys.argv[1:] = json.loads(request)
            return sys.argv[1:]
        for stream in streams:
            os.close(stream)
        end = os.pidfd_open(process)
        if end not in select([parent.fileno(), end], [], [])[0]:  # the parent, which is silent, has gone
            break
        os.close(end)
        parent.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())
    os._exit(0)


def end_with_parent() -> None:
    """Let the Linux kernel end this process when the thread that started it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _import(modules: Sequence[str], variables: dict[str, str]) -> None:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    for module in modules:
        importlib.import_module(module)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _begin(server: int, parent: socket.socket, streams: Sequence[int]) -> None:
    """Make a fork a process like any other, and tell its id."""
    end_with_parent()
    if os.getppid() != server:  # dead before the kernel was asked
        os._exit(1)
    become(streams)
    process = os.getpid()
    socket.send_fds(parent, [str(process).encode()], [os.pidfd_open(process)])
    parent.close()


def become(streams: Sequence[int]) -> None:
    """Lead a session, take the first three descriptors as standard streams, and forget what was drawn."""
    os.setsid()
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
        os.close(stream)
    # Anew, because these objects remember what they were opened on, such as whether one can seek in it.
    files = {
        "stdin": os.fdopen(0, closefd=False),
        "stdout": os.fdopen(1, "w", closefd=False),
        "stderr": os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False),
    }
    for name, file in files.items():
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    importlib.invalidate_caches()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # as in every process; Python's own generator does so itself
