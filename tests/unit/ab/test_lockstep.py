"""Turns update by update: one process at work at a time, nobody waits for one that is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from harness.ab import lockstep
from harness.ab.lockstep import Lockstep
from harness.engine.measure.lockstep import GO, VARIABLE, Turn

PATIENCE_S = 20


class Process(threading.Thread):
    """Does interleaved updates and writes down who was at work; `starts` holds it back until then."""

    def __init__(self, name: str, place: str, updates: int, log: list[str]) -> None:
        super().__init__(name=name, daemon=True)
        self.place, self.updates, self.log = place, updates, log
        self.turn = Turn(place)
        self.starts = threading.Event()
        self.starts.set()

    def run(self) -> None:
        self.starts.wait(PATIENCE_S)
        mine = self.turn
        for _ in range(self.updates):
            mine.wait()
            self.log.append(f"{self.name} begins")
            time.sleep(0.002)
            self.log.append(f"{self.name} ends")
        mine.end()

    def ended(self) -> bool:
        return not self.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Lockstep]:
    with closing(Lockstep(tmp_path, 2)) as made:
        yield made


def followed(server: Lockstep, processes: Sequence[Process]) -> None:
    for process in processes:
        process.start()
    server.run([process.ended for process in processes])


def order(log: Sequence[str]) -> str:
    """Who worked in which order; two at once are a failure."""
    for begins, ends in zip(log[::2], log[1::2], strict=True):
        assert begins.split()[0] == ends.split()[0], log
    return "".join(line[0] for line in log[::2])


def test_updates_take_turns_and_are_never_at_work_together(
    server: Lockstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "SLICE_S", 0.0)
    monkeypatch.setattr(lockstep, "POLL_S", 0.0)  # it looks many times while an update is at work
    log: list[str] = []
    followed(
        server, [Process(name, place, 20, log) for name, place in zip("ab", server.sockets, strict=True)]
    )
    assert order(log) == "ab" * 20


def test_a_turn_lasts_its_slice_in_whole_updates(server: Lockstep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "SLICE_S", 60.0)
    log: list[str] = []
    followed(server, [Process(name, place, 5, log) for name, place in zip("ab", server.sockets, strict=True)])
    assert order(log) == "a" * 5 + "b" * 5


def test_nobody_begins_before_the_other_is_ready(server: Lockstep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "SLICE_S", 0.0)
    log: list[str] = []
    early, late = (Process(name, place, 3, log) for name, place in zip("ab", server.sockets, strict=True))
    late.starts.clear()
    threading.Timer(0.3, late.starts.set).start()
    began = time.monotonic()
    followed(server, [early, late])
    assert time.monotonic() - began >= 0.3
    assert order(log) == "ababab"


def test_one_that_ends_early_leaves_the_turns_to_the_other(
    server: Lockstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "SLICE_S", 0.0)
    log: list[str] = []
    followed(
        server, [Process(n, place, u, log) for n, place, u in zip("ab", server.sockets, (2, 6), strict=True)]
    )
    assert order(log) == "ababbbbb"


def test_one_that_never_asks_keeps_nobody_waiting_when_it_is_gone(server: Lockstep) -> None:
    log: list[str] = []
    silent, other = (
        Process(n, place, u, log) for n, place, u in zip("ab", server.sockets, (0, 4), strict=True)
    )
    followed(server, [silent, other])
    assert order(log) == "bbbb"


def test_a_waiting_process_goes_on_when_nobody_answers_any_more(tmp_path: Path) -> None:
    server = Lockstep(tmp_path, 2)
    log: list[str] = []
    alone = Process("a", server.sockets[0], 3, log)
    alone.start()
    time.sleep(0.05)
    assert log == []
    server.close()
    alone.join(PATIENCE_S)
    assert order(log) == "aaa"
    assert alone.turn.flags == {}


def test_a_run_says_that_it_was_in_turns_when_it_was_from_its_first_to_its_end(server: Lockstep) -> None:
    processes = [Process(name, place, 3, []) for name, place in zip("ab", server.sockets, strict=True)]
    followed(server, processes)
    assert [process.turn.flags for process in processes] == [{"in_turns": True}] * 2


class Fleeting:
    """Grants so many turns and is gone, in the middle of the update that it granted last."""

    def __init__(self, place: Path, grants: int) -> None:
        self._server, self._grants = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), grants
        self._server.bind(str(place))
        self._server.listen(1)
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def _answer(self) -> None:
        connection, _ = self._server.accept()
        with connection, self._server:
            for _ in range(self._grants):
                connection.recv(1)
                connection.sendall(GO)


@pytest.mark.parametrize(("grants", "updates"), [(0, 1), (1, 1), (1, 2), (2, 5)])
def test_a_run_whose_turns_broke_off_does_not_say_that_it_was_in_turns(
    tmp_path: Path, grants: int, updates: int
) -> None:
    place = tmp_path / "fleeting.sock"
    fleeting, mine = Fleeting(place, grants), Turn(str(place))
    for _ in range(updates):
        mine.wait()
    fleeting.thread.join(PATIENCE_S)
    mine.end()
    assert mine.flags == {}


@pytest.mark.parametrize("place", ["", "/no/such.sock"])
def test_nobody_waits_where_nobody_gives_turns(place: str) -> None:
    mine = Turn(place)
    mine.wait()
    mine.wait()
    mine.end()
    assert mine.flags == {}


def test_the_place_is_in_a_variable(monkeypatch: pytest.MonkeyPatch, server: Lockstep) -> None:
    monkeypatch.setenv(VARIABLE, server.sockets[1])
    assert Turn()._place == server.sockets[1]
    monkeypatch.delenv(VARIABLE)
    assert Turn()._place is None
