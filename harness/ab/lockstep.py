"""Gives turns on a device to processes that ask update by update; the other end is `engine/turn.py`."""

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

#: How long a process keeps its turn, in whole updates: long beside what a change of processes costs, and
#: short beside the moods of a machine, which last for tenths of a second.
SLICE_S = 0.05
PATIENCE_S = 0.1
#: What folders of sockets are called, with a few letters more.
PREFIX = "turns-"


def socket_folder() -> str | None:
    """Where a folder of sockets can be made: a path has at most about a hundred bytes; None: nowhere."""
    for folder in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp"):
        if not folder or not hasattr(socket, "AF_UNIX"):
            continue
        with suppress(OSError), tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as made:
            with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as tried:
                tried.bind(str(Path(made, "0.sock")))
            return folder
    return None


@dataclass
class _Side:
    """A process: whether it waits for a word, whether it ever did, and whether it is over."""

    server: socket.socket
    connection: socket.socket | None = None
    asks: bool = False
    began: bool = False
    over: bool = False


class Arbiter:
    """One turn at a time; nobody begins before all that are not over have asked."""

    def __init__(self, folder: Path, count: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._holder, self._since = now, -1, 0.0
        self._selector = selectors.DefaultSelector()
        self.places = [str(folder / f"{number}.sock") for number in range(count)]
        self._sides = [self._listening(place) for place in self.places]

    def _listening(self, place: str) -> _Side:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(place)
        server.listen(1)
        side = _Side(server)
        self._selector.register(server, selectors.EVENT_READ, side)
        return side

    def close(self) -> None:
        """Let everybody go who waits."""
        for side in self._sides:
            side.server.close()
            if side.connection is not None:
                side.connection.close()
        self._selector.close()

    def follow(self, ended: Sequence[Callable[[], bool]]) -> None:
        """Give turns until every process has ended, which these functions say."""
        while not all(over() for over in ended):
            for key, _ in self._selector.select(PATIENCE_S):
                self._hear(key.fileobj, key.data)
            for side, over in zip(self._sides, ended, strict=True):
                if over():
                    self._let_go(side)
            self._decide()

    def _hear(self, source: object, side: _Side) -> None:
        if source is side.server:
            side.connection, _ = side.server.accept()
            self._selector.register(side.connection, selectors.EVENT_READ, side)
            return
        assert side.connection is not None
        said = b""
        with suppress(OSError):
            said = side.connection.recv(64)
        if said:
            side.asks = side.began = True
        else:
            self._let_go(side)

    def _let_go(self, side: _Side) -> None:
        """A process that has closed its end, or is no more, asks for nothing."""
        side.over, side.asks = True, False
        if side.connection is not None:
            self._selector.unregister(side.connection)
            side.connection.close()
            side.connection = None

    def _decide(self) -> None:
        """Give the turn when nobody is at work: to its holder within its slice, else to the next."""
        holder = self._sides[self._holder] if self._holder >= 0 else None
        working = holder is not None and not holder.asks and not holder.over
        if working or any(not side.began and not side.over for side in self._sides):
            return
        asking = [number for number, side in enumerate(self._sides) if side.asks]
        if not asking:
            return
        fresh = self._now() - self._since < SLICE_S
        following = sorted(asking, key=lambda number: (number - self._holder - 1) % len(self._sides))
        chosen = self._holder if self._holder in asking and fresh else following[0]
        if chosen != self._holder:
            self._holder, self._since = chosen, self._now()
        elif not fresh:
            self._since = self._now()
        self._send(self._sides[chosen])

    def _send(self, side: _Side) -> None:
        side.asks = False
        assert side.connection is not None
        try:
            side.connection.sendall(GO)
        except OSError:
            self._let_go(side)
