"""Forks of one server are processes like any other: streams, groups, codes, deaths, and the same records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import ROOT, alive, wait_until
from test_faults import NOT_COMPARED, by_label, carry_out, settings_for, tiny, write_inputs

from harness import imports, series
from harness import record as records
from harness.engine.process.child import Worker
from harness.engine.process.forks import Fork, Forks
from harness.engine.process.job import Job
from harness.record import Record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")

WORKER = "harness.engine.worker"
#: A server that imports one module, and whose forks do what they are told in Python.
SERVER = """
import os, sys
sys.path[:0] = {paths!r}
sys.path.append("/of/plugins")
{first}
from harness.engine.process import forks
told = forks.serve(["numpy"], {{"ONLY_WHILE_IMPORTING": "1"}})
exec(told[0])
"""


def server(first: str = "") -> list[str]:
    return [sys.executable, "-c", SERVER.format(paths=[str(ROOT)], first=first)]


class Started:
    """A server for one test, and what its forks have said."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.log, self.command = folder / "log.txt", command
        self.notes: list[str] = []
        self.forks = Forks(command, self.notes.append)

    def run(self, code: str, *descriptors: int) -> tuple[Worker, list[Any]]:
        """Let a fork run some code to its end."""
        worker = self.begin(code, *descriptors)
        events: list[Any] = []
        assert worker.follow(30.0, events.append) is None
        worker.stop(1.0)
        return worker, events

    def begin(self, code: str, *descriptors: int) -> Worker:
        self.forks.prepare()
        return Worker([*self.command, code], self.log, descriptors, self.forks)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    given = Started(tmp_path, server())
    with given.forks:
        yield given
    assert given.notes == []


def server_of(worker: Worker) -> int:
    return psutil.Process(worker.process.pid).ppid()


# ------------------------------------------------------------------------------------------- a process
def test_a_fork_has_streams_a_session_and_descriptors_of_its_own(started: Started, tmp_path: Path) -> None:
    code = """
import json, threading
print("to the log", file=sys.stderr)
opened = {}
for number in os.listdir("/proc/self/fd"):
    if os.path.exists(place := f"/proc/self/fd/{number}") or os.path.islink(place):
        opened[os.readlink(place)] = int(number)
os.write(next(number for name, number in opened.items() if name.endswith("other.txt")), b"inherited")
print(json.dumps({
    "ids": [os.getpid(), os.getpgid(0), os.getsid(0)],
    "threads": threading.active_count(),
    "plugins": sys.path[-1],
    "variable": os.environ.get("ONLY_WHILE_IMPORTING"),
    "sockets": [name for name in opened if name.startswith("socket")],
}))
"""
    other = os.open(tmp_path / "other.txt", os.O_CREAT | os.O_RDWR)
    worker, (said,) = started.run(code, other)
    os.close(other)
    assert isinstance(worker.process, Fork)
    expected = {"threads": 1, "plugins": "/of/plugins", "variable": None, "sockets": []}
    assert said == {"ids": [worker.process.pid] * 3, **expected}
    assert started.log.read_text() == "to the log\n"
    assert (tmp_path / "other.txt").read_text() == "inherited"


@pytest.mark.parametrize(
    ("code", "returned"),
    [("pass", 0), ("sys.exit(2)", 2), ("raise ValueError('x')", 1), ("os.kill(os.getpid(), 9)", -9)],
)
def test_the_end_of_a_fork_is_reported_as_of_any_process(started: Started, code: str, returned: int) -> None:
    worker, _ = started.run(code)
    assert worker.process.returncode == returned
    assert started.log.read_text().rstrip().endswith("ValueError: x" if returned == 1 else "")


def test_forks_draw_other_random_numbers_and_import_anew(started: Started, tmp_path: Path) -> None:
    code = f"""
import json, random, numpy
sys.path.append({str(tmp_path)!r})
import changing
print(json.dumps({{"drawn": [random.random(), numpy.random.random()], "text": changing.TEXT}}))
"""
    said = []
    for text in ("first", "second, longer"):
        (tmp_path / "changing.py").write_text(f"TEXT = {text!r}\n")
        said += started.run(code)[1]
    assert [each["text"] for each in said] == ["first", "second, longer"]
    assert len({number for each in said for number in each["drawn"]}) == 4


def test_a_deadline_ends_a_fork_with_its_group(started: Started) -> None:
    code = """
import subprocess, time
child = subprocess.Popen(["sleep", "600"])
print('{"child": %d}' % child.pid, flush=True)
import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
    worker, events = started.begin(code), []
    assert worker.follow(1.0, events.append) == "stopped at the deadline of 1 s"
    worker.stop(0.1)
    assert worker.ended_by == "SIGKILL"
    wait_until(lambda: not alive(events[0]["child"]))
    assert started.run("pass")[0].process.returncode == 0


# --------------------------------------------------------------------------------------------- deaths
def test_a_killed_server_takes_its_fork_along_and_is_replaced(started: Started) -> None:
    worker = started.begin("import time; time.sleep(600)")
    killed = server_of(worker)
    os.kill(killed, signal.SIGKILL)
    assert worker.follow(30.0, lambda event: None) is None
    worker.stop(1.0)
    assert worker.ended_by == "SIGKILL"
    assert not alive(worker.process.pid)
    again = started.begin("import time; time.sleep(600)")
    assert isinstance(again.process, Fork)
    assert server_of(again) != killed
    again.stop(1.0)


def test_a_server_that_dies_unseen_costs_no_run(started: Started) -> None:
    worker = started.begin("import time; time.sleep(600)")
    server = server_of(worker)
    worker.stop(1.0)
    started.forks._process.poll = lambda: None  # type: ignore[union-attr, method-assign]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not alive(server))
    plain = Worker([sys.executable, "-c", "print('{}')"], started.log, (), started.forks)
    assert not isinstance(plain.process, Fork)
    assert plain.follow(30.0, lambda event: None) is None
    plain.stop(1.0)


PARENT = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from test_forks import Started, server, server_of
given = Started(Path(sys.argv[1]), server())
worker = given.begin("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")
print(worker.process.pid, server_of(worker), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_neither_server_nor_fork(number: int, tmp_path: Path) -> None:
    code = PARENT.format(paths=[str(ROOT), str(Path(__file__).parent)])
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        left = list(map(int, parent.stdout.readline().split()))
        assert all(map(alive, left))
        parent.send_signal(number)
    wait_until(lambda: not any(map(alive, left)))


# ------------------------------------------------------------------------------------- where it is not
@pytest.mark.parametrize(
    ("first", "why"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "forks are unsafe beside other threads (1)",
        ),
        ("raise ImportError", "there is no process to fork from"),
    ],
)
def test_where_forks_are_unsafe_runs_are_processes_of_their_own_and_that_is_said_once(
    first: str, why: str, tmp_path: Path
) -> None:
    given = Started(tmp_path, server(first))
    with given.forks:
        for _ in range(2):
            given.forks.prepare()
            assert given.forks.start([*given.command, "pass"], 2, ()) is None
    assert given.notes == [f"each run imports the libraries anew: {why}"]


def test_a_server_follows_the_code_the_folder_and_the_variables(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "code.py").touch()
    monkeypatch.setattr(imports, "ROOT", tmp_path)
    servers = []

    def serve() -> None:
        code = "import json; print(json.dumps({'server': os.getppid()}))"
        servers.append(started.run(code)[1][0]["server"])

    serve()
    serve()
    os.utime(tmp_path / "harness" / "code.py", (1.0, 1.0))
    serve()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    serve()
    monkeypatch.chdir(tmp_path)
    serve()
    assert servers[0] == servers[1]
    assert len(set(servers)) == 4


# ----------------------------------------------------------------------------------------- real runs
def test_a_sweep_forks_its_runs_and_their_records_are_those_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    write_inputs(tmp_path)
    runs = [tiny(tmp_path), tiny(tmp_path, seed=1, label="another seed")]
    kinds, follow = [], Worker.follow

    def spied(worker: Worker, *rest: Any) -> str | None:
        kinds.append(type(worker.process))
        return follow(worker, *rest)

    monkeypatch.setattr(Worker, "follow", spied)
    found = by_label(carry_out(settings_for(tmp_path), runs))
    forked = found["none in train"]
    assert kinds == [Fork, Fork]
    assert forked.training != found["another seed"].training

    job = Job(runs[0], "faults", tmp_path / "plain" / forked.run_id, "cpu", tmp_path / "cache", forked.rerun)
    job = replace(job, inputs=forked.inputs)
    job.folder.mkdir(parents=True)
    job.write()
    worker = Worker([sys.executable, "-P", imports.__file__, WORKER, "run", str(job.file)], job.log)
    assert worker.follow(120.0, lambda event: None) is None
    worker.stop(1.0)
    plain = records.read(job.record)
    assert forked.outcome.status == "ok"
    assert compared(forked) == compared(plain)
    assert series.losses(forked) == series.losses(plain)


def compared(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude=NOT_COMPARED)
