"""A lock has one holder, ends with it, and is taken over when its holder is gone, with and without flock."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from sweeping import ROOT, wait_until

from harness.engine.process import lock as locks
from harness.engine.process.interrupts import Interrupted, raised
from harness.engine.process.lock import Lock

HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from harness.engine.process import lock as locks
if {soft}:
    locks._flock = lambda file: None
assert locks.Lock(Path({path!r})).take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


@pytest.fixture(params=["kernel", "file"])
def soft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system refuses flock."""
    if request.param == "file":
        refuse_flock(monkeypatch, errno.ENOLCK)
    return request.param == "file"


def refuse_flock(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", flock)


def holder(path: Path, soft: bool) -> subprocess.Popen[str]:
    """A process that holds the lock."""
    script = HOLD.format(root=str(ROOT), path=str(path), soft=soft)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.usefixtures("soft")
def test_one_holds_it_and_leaves_nothing(path: Path) -> None:
    first, second = Lock(path), Lock(path)
    assert first.take()
    assert not second.take()
    assert str(os.getpid()) in second.holder
    first.give()
    assert not path.exists()
    assert second.take()
    second.give()
    assert list(path.parent.iterdir()) == []


def test_of_a_holder_that_is_killed_it_is_taken_over_at_once(path: Path, soft: bool) -> None:
    process = holder(path, soft)
    lock = Lock(path)
    assert not lock.take()
    process.kill()
    process.wait()
    assert path.exists()
    assert lock.take()
    assert lock.held()
    lock.give()
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_flock_a_file_does_it(code: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_flock(monkeypatch, code)
    lock = Lock(path)
    assert lock.take()
    assert not lock.inherited
    assert not Lock(path).take()
    lock.give()


def test_a_system_without_fcntl_locks_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    assert Lock(path).take()
    assert not Lock(path).take()


def foreign(path: Path) -> None:
    """A lock of another machine, whose kernel this one does not see."""
    path.write_text(json.dumps({"host": "elsewhere", "process": 1, "machine": "another", "flock": True}))


def test_another_machine_holds_it_as_long_as_it_touches_the_file(
    path: Path, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.4)
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    foreign(path)
    lock = Lock(path)
    for _ in range(5):
        assert not lock.take()
        assert lock.holder == "process 1 on elsewhere"
        time.sleep(0.15)
        os.utime(path)
    wait_until(lock.take, 5.0)
    lock.give()
    assert not path.exists()


def test_a_holder_touches_its_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    lock = Lock(path)
    assert lock.take()
    os.utime(path, (1.0, 1.0))
    wait_until(lambda: path.stat().st_mtime > 1.0, 5.0)
    lock.give()


def test_what_another_machine_left_long_ago_is_taken_over_without_watching(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    foreign(path)
    os.utime(path, (time.time() - 2 * locks.ABANDONED_S,) * 2)
    assert Lock(path).take()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 9000, b'{"host": 3, "process": "x"}'])
def test_a_file_that_names_nobody_is_given_time_and_then_taken_over(
    content: bytes, path: Path, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty one is of a holder that was killed a moment after it made the file.
    monkeypatch.setattr(locks, "STALE_S" if content else "EMPTY_S", 0.1)
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    path.write_bytes(content)
    lock = Lock(path)
    assert not lock.take()
    wait_until(lock.take, 5.0)
    lock.give()
    assert not path.exists()


def test_a_holder_whose_file_was_replaced_knows_and_leaves_that_of_the_other(path: Path) -> None:
    first, second = Lock(path), Lock(path)
    assert first.take()
    path.unlink()
    assert second.take()
    assert not first.held()
    first.give()
    assert second.held()
    assert path.exists()


@pytest.mark.parametrize("taken_again", [True, False])
def test_a_file_that_is_removed_between_opening_and_locking_is_not_the_lock(
    taken_again: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel locks a file without a name as well: the second would hold what nobody else can see."""
    first, second, third = Lock(path), Lock(path), Lock(path)
    assert first.take()
    opened = Lock._open

    def slow(self: Lock) -> tuple[int | None, bool]:
        answer = opened(self)
        if self is second and first.held():
            first.give()
            assert not taken_again or third.take()
        return answer

    monkeypatch.setattr(Lock, "_open", slow)
    assert second.take() != taken_again
    assert (third if taken_again else second).held()
    third.give()
    second.give()
    assert not path.exists()


@pytest.mark.usefixtures("soft")
def test_who_made_a_file_and_was_stopped_before_locking_it_leaves_it_to_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "EMPTY_S", 0.05)
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    monkeypatch.setattr(locks, "LOOK_S", 0.0)
    first, second = Lock(path), Lock(path)
    opened = Lock._open

    def slow(self: Lock) -> tuple[int | None, bool]:
        answer = opened(self)
        if self is first:
            assert answer[1], "it made the file"
            wait_until(second.take, 5.0)
        return answer

    monkeypatch.setattr(Lock, "_open", slow)
    assert not first.take()
    assert str(os.getpid()) in first.holder
    assert second.held()


def test_a_signal_that_comes_while_the_lock_is_taken_gives_it_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, take = Lock(path), Lock.take

    def signalled(self: Lock) -> bool:
        taken = take(self)
        signal.raise_signal(signal.SIGTERM)
        return taken

    monkeypatch.setattr(Lock, "take", signalled)
    with raised(), pytest.raises(Interrupted):
        lock.wait(pytest.fail)
    assert not path.exists()


@pytest.mark.usefixtures("soft")
def test_a_lock_is_waited_for_and_that_is_said_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    first, second = Lock(path), Lock(path)
    assert first.take()
    said: list[str] = []

    def waiting() -> None:
        said.append(second.holder)
        threading.Timer(0.1, first.give).start()

    second.wait(waiting)
    assert said == [f"process {os.getpid()} on {socket.gethostname()}"]
    assert second.held()
    second.give()


def test_a_child_that_inherits_it_keeps_it(path: Path) -> None:
    lock = Lock(path)
    assert lock.take()
    child = subprocess.Popen(["sleep", "600"], pass_fds=lock.inherited)
    os.close(lock.inherited[0])  # as the kernel does when the parent is killed
    assert not Lock(path).take()
    child.kill()
    child.wait()
    assert Lock(path).take()


def test_a_link_or_a_folder_in_place_is_not_followed(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("mine")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        Lock(path).take()
    assert target.read_text() == "mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        Lock(path).take()


@pytest.mark.usefixtures("soft")
def test_of_many_threads_one_at_a_time_holds_it(path: Path) -> None:
    inside, most, taken = Counter[str](), Counter[str](), Counter[str]()
    guard = threading.Lock()

    def work() -> None:
        lock = Lock(path)
        mine = 0
        while mine < 5:
            if not lock.take():
                time.sleep(0.001)
            else:
                mine += 1
                with guard:
                    inside["now"] += 1
                    most["ever"] = max(most["ever"], inside["now"])
                    taken["times"] += 1
                time.sleep(0.001)
                with guard:
                    inside["now"] -= 1
                lock.give()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most["ever"] == 1
    assert taken["times"] == 40
    assert not path.exists()


def test_processes_that_are_killed_while_they_lock_leave_nothing_that_lasts(path: Path) -> None:
    for _ in range(3):
        process = holder(path, False)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock = Lock(path)
        assert lock.take()
        lock.give()
    assert list(path.parent.iterdir()) == []
