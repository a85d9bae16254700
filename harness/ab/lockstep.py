"""Let processes update alternately on one device; the client is `harness/engine/measure/lockstep.py`."""

from __future__ import annotations

import os
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.engine.measure.lockstep import GO

#: How long a process goes on, in whole updates: long beside what a change of processes costs, and short
#: beside fluctuations of a machine's speed, which last for tenths of a second.
SLICE_S = 0.05
#: How often it is checked whether a process has ended.
POLL_S = 0.1
#: Prefix of the folders of sockets.
PREFIX = "turns-"


def socket_folder() -> str | None:
    """Return a folder whose path is short enough for sockets (about 100 bytes), None without one."""
    for folder in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp"):
        if not folder or not hasattr(socket, "AF_UNIX"):
            continue
        with suppress(OSError), tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as made:
            with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
                probe.bind(str(Path(made, "0.sock")))
            return folder
    return None


@dataclass
class _Client:
    """A process: whether it waits for its next update, whether it ever did, and whether it has ended."""

    server: socket.socket
    connection: socket.socket | None = None
    waits: bool = False
    began: bool = False
    ended: bool = False


class Lockstep:
    """Grant updates to one process at a time; none begins before all that have not ended are ready."""

    def __init__(self, folder: Path, count: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._holder, self._since = now, -1, 0.0
        self._selector = selectors.DefaultSelector()
        self.sockets = [str(folder / f"{number}.sock") for number in range(count)]
        self._clients = [self._listen(path) for path in self.sockets]

    def _listen(self, path: str) -> _Client:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(path)
        server.listen(1)
        client = _Client(server)
        self._selector.register(server, selectors.EVENT_READ, client)
        return client

    def close(self) -> None:
        """Close all connections; processes that wait continue alone."""
        for client in self._clients:
            client.server.close()
            if client.connection is not None:
                client.connection.close()
        self._selector.close()

    def run(self, ended: Sequence[Callable[[], bool]]) -> None:
        """Grant updates until all processes have ended; `ended` has a function for each."""
        while not all(has_ended() for has_ended in ended):
            for key, _ in self._selector.select(POLL_S):
                self._receive(key.fileobj, key.data)
            for client, has_ended in zip(self._clients, ended, strict=True):
                if has_ended():
                    self._drop(client)
            self._grant()

    def _receive(self, source: object, client: _Client) -> None:
        if source is client.server:
            client.connection, _ = client.server.accept()
            self._selector.register(client.connection, selectors.EVENT_READ, client)
            return
        assert client.connection is not None
        received = b""
        with suppress(OSError):
            received = client.connection.recv(64)
        if received:
            client.waits = client.began = True
        else:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        """Forget a process that has closed its end or has ended."""
        client.ended, client.waits = True, False
        if client.connection is not None:
            self._selector.unregister(client.connection)
            client.connection.close()
            client.connection = None

    def _grant(self) -> None:
        """Grant an update when none is under way: to the last process within its slice, else to the next."""
        holder = self._clients[self._holder] if self._holder >= 0 else None
        working = holder is not None and not holder.waits and not holder.ended
        if working or any(not client.began and not client.ended for client in self._clients):
            return
        waiting = [number for number, client in enumerate(self._clients) if client.waits]
        if not waiting:
            return
        within_slice = self._now() - self._since < SLICE_S
        following = sorted(waiting, key=lambda number: (number - self._holder - 1) % len(self._clients))
        chosen = self._holder if self._holder in waiting and within_slice else following[0]
        if chosen != self._holder:
            self._holder, self._since = chosen, self._now()
        elif not within_slice:
            self._since = self._now()
        client = self._clients[chosen]
        client.waits = False
        assert client.connection is not None
        try:
            client.connection.sendall(GO)
        except OSError:
            self._drop(client)
