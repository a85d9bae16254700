"""What was finished stays until better is there, whatever happens to an attempt or to the files of a run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sweeping import Remember, starts, stub_run, suite_of

from harness import record as records
from harness.config import Run
from harness.engine.process import attempt
from harness.engine.process import carry_out as process
from harness.engine.process.interrupts import Interrupted, interruptible, raised, shielded
from harness.engine.process.job import Job
from harness.engine.runner import Settings, Sweep, sweep
from harness.errors import LONGEST_MESSAGE, bounded
from harness.record import PROTOCOLS, Outcome
from tests.support.gate_records import environment

Go = Callable[..., Sweep]


class Place:
    """The files of one run that has ended: record, weights, series, samples and log."""

    def __init__(self, go: Go, run: Run, status: str, protocols: dict[str, int] | None = None) -> None:
        done = go(stub_run("ok", seed=99))
        self.folder, self.run_id = done.folder, run.run_id
        self.record, self.files = self.folder / f"{self.run_id}.json", self.folder / self.run_id
        job = Job(run, "stubs", self.files, "stub", self.folder, "lorebench run")
        old = ended(job, status, "the earlier one")
        records.write(old.model_copy(update={"protocols": protocols or PROTOCOLS}), self.record)
        self.series = self.folder / f"{self.run_id}.series.01234567.parquet"
        for path in (self.series, self.files / "weights" / "model.safetensors", self.files / "log.txt"):
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text("the earlier one")

    def kept(self) -> bool:
        """Whether every file is as it was."""
        here = (self.series, self.files / "weights" / "model.safetensors", self.files / "log.txt")
        return "the earlier one" in self.record.read_text() and all(
            path.is_file() and path.read_text() == "the earlier one" for path in here
        )

    def replaced(self) -> bool:
        """Whether nothing is left of it."""
        rest = [path for path in self.folder.rglob("*") if path.is_file() and self.run_id in str(path)]
        return not any("the earlier one" in path.read_text() for path in rest)

    def hidden(self) -> list[str]:
        return [path.name for path in self.folder.glob(".*")]


def ended(job: Job, status: str, message: str = "") -> records.Record:
    """The record of a run that ended."""
    outcome = Outcome.model_validate({"status": status, "message": message})
    update = {"outcome": outcome, "environment": records.Environment(**environment())}
    return job.blank().model_copy(update=update)


OLD = {**PROTOCOLS, "time": 0}


# ----------------------------------------------------------------------- what an attempt replaces
@pytest.mark.parametrize(
    ("before", "protocols", "now", "kept"),
    [
        ("ok", OLD, "ok", False),
        ("ok", OLD, "error", True),
        ("ok", OLD, "oom", True),
        ("ok", OLD, "sigkill", True),
        ("ok", OLD, "bad-input", True),
        ("error", PROTOCOLS, "ok", False),
        ("error", PROTOCOLS, "oom", True),  # has weights
        ("timeout", PROTOCOLS, "sigkill", True),
        ("timeout", OLD, "ok", False),
        ("interrupted", PROTOCOLS, "ok", False),
        ("interrupted", PROTOCOLS, "error", False),
        ("interrupted", PROTOCOLS, "sigkill", True),
    ],
)
def test_what_an_attempt_replaces(
    before: str, protocols: dict[str, int], now: str, kept: bool, carry_out: Go
) -> None:
    run = stub_run(now, size=1)
    place = Place(carry_out, run, before, protocols)
    result = carry_out(run, retry=True)
    if kept:
        assert place.kept()
    else:
        assert place.replaced()
        assert records.read(place.record).outcome.status == now
    assert place.hidden() == []
    ended = now not in ("sigkill", "bad-input")
    assert [record.outcome.status for record in result.records.values()] == [now] * ended
    failed = place.files / attempt.FAILED_LOG
    assert failed.exists() == (kept and ended)


def test_a_failed_record_without_weights_is_replaced_by_what_a_second_try_ends_in(carry_out: Go) -> None:
    first = carry_out(stub_run("oom"))
    (run_id,) = first.records
    assert carry_out(stub_run("oom"), retry=True).done_now == [run_id]
    assert not (first.folder / run_id / attempt.FAILED_LOG).exists()


STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", STOP)
def test_a_signal_stops_worker_and_sweep_and_keeps_what_was_there(
    number: signal.Signals, settings: Settings
) -> None:
    class Impatient(Remember):
        def event(self, event: object) -> None:
            os.kill(os.getpid(), number)

    def go(*runs: Run, display: Remember | None = None, retry: bool = False) -> Sweep:
        chosen = replace(settings, retry=retry)
        return sweep(suite_of(*runs), chosen, display or Remember(), lambda run: "")

    run = stub_run("hang", size=1)
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # a job in the background may ignore it
    try:
        place = Place(go, run, "error")
        with pytest.raises(Interrupted) as caught:
            go(run, display=Impatient(), retry=True)
        assert caught.value.number == number
        assert place.kept()
        assert place.hidden() == []
        new = stub_run("hang", size=2)
        with pytest.raises(Interrupted):
            go(new, display=Impatient())
        outcome = records.read(place.folder / f"{new.run_id}.json").outcome
        by = "Ctrl-C" if number == signal.SIGINT else number.name
        assert (outcome.status, outcome.message) == ("interrupted", f"stopped by {by}")
    finally:
        signal.signal(number, before)


def test_a_signal_waits_for_the_end_of_a_critical_step() -> None:
    done = []

    def step(waits: bool) -> None:
        with raised(), shielded():
            os.kill(os.getpid(), signal.SIGTERM)
            if waits:
                with interruptible():
                    done.append("never")
            done.append("the rest of the step")

    for waits in (False, True):
        with pytest.raises(Interrupted, match="SIGTERM"):
            step(waits)
    assert done == ["the rest of the step"]


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# -------------------------------------------------------------------------- kills between two steps
class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(12))
def test_a_kill_before_any_step_of_a_move_leaves_one_whole_run(
    step: int, carry_out: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that changes files is a place to die; the next sweep finds the earlier run or the new one."""
    run = stub_run("ok", size=1)
    place = Place(carry_out, run, "error")
    new = place.folder / f".{place.run_id}.new"
    (new / place.run_id / "weights").mkdir(parents=True)
    (new / place.run_id / "weights" / "model.safetensors").write_text("the new one")
    job = Job(run, "stubs", place.files, "stub", place.folder, "")
    records.write(ended(job, "ok", "the new one"), new / place.record.name)
    calls = 0

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return original(*given, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(attempt.shutil, "rmtree", counted(attempt.shutil.rmtree))
        try:
            attempt.end(job, Job(run, "stubs", new / place.run_id, "stub", place.folder, ""), None)
        except Killed:
            assert calls == step + 1
    attempt.recover(place.folder, place.run_id)
    assert records.read(place.record).outcome.message == "the new one"
    assert (place.files / "weights" / "model.safetensors").read_text() == "the new one"
    assert place.replaced()
    assert place.hidden() == []


def test_an_attempt_that_ended_well_is_not_done_again_though_its_sweep_was_killed(
    carry_out: Go, settings: Settings
) -> None:
    run = stub_run("ok", size=1)
    place = Place(carry_out, run, "error")
    new = place.folder / f".{place.run_id}.new"
    job = Job(run, "stubs", new / place.run_id, "stub", place.folder, "")
    job.folder.mkdir(parents=True)
    records.write(ended(job, "ok"), job.record)
    before = starts(settings)
    assert carry_out(run).records[place.run_id].outcome.status == "ok"
    assert starts(settings) == before
    assert place.replaced()


def test_what_killed_sweeps_left_of_finished_runs_goes_too(carry_out: Go) -> None:
    done = carry_out(stub_run())
    (run_id,) = done.records
    (done.folder / f".{run_id}.new" / run_id).mkdir(parents=True)
    (done.folder / f".{run_id}.lock").touch()
    os.utime(done.folder / f".{run_id}.lock", (1.0, 1.0))
    (done.folder / f".{run_id}.json.1-2.tmp").write_text("{")
    (done.folder / "._mine").write_text("not ours")
    carry_out(stub_run())
    assert [path.name for path in done.folder.glob(".*")] == ["._mine"]


# ------------------------------------------------------------------------- files lost or in the way
def test_links_are_removed_and_what_they_point_to_is_not(carry_out: Go, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "weights").mkdir(parents=True)
    (mine / "weights" / "model.safetensors").write_text("mine")
    run = stub_run("ok", size=1)
    folder = carry_out(stub_run(seed=7)).folder
    (folder / run.run_id).symlink_to(mine)
    assert carry_out(run).records[run.run_id].outcome.status == "ok"
    assert (mine / "weights" / "model.safetensors").read_text() == "mine"
    assert not (folder / run.run_id).is_symlink()


def test_a_file_where_the_folder_of_a_run_should_be_is_replaced(carry_out: Go) -> None:
    run = stub_run("ok", size=1)
    folder = carry_out(stub_run(seed=7)).folder
    (folder / run.run_id).write_text("in the way")
    assert carry_out(run).records[run.run_id].outcome.status == "ok"


DAMAGE = {
    "folder lost": "shutil.rmtree(folder)",
    "folder a file": "shutil.rmtree(folder); folder.write_text('x')",
    "folder a link": "shutil.rmtree(folder); folder.symlink_to('/')",
    "log lost": "(folder / 'log.txt').unlink()",
    "log a folder": "(folder / 'log.txt').unlink(); (folder / 'log.txt').mkdir()",
    "record lost": "record.unlink()",
    "record a folder": "record.unlink(); (record / 'x').mkdir(parents=True)",
    "record a link": "record.unlink(); record.symlink_to('nowhere')",
    "record no record": "record.write_bytes(b'\\xff{')",
    "suite lost": "shutil.rmtree(folder.parent)",
    "suite a file": "shutil.rmtree(folder.parent); folder.parent.write_text('x')",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_whose_files_are_lost_or_in_the_way_is_an_error_and_the_sweep_ends_in_order(
    damage: str, carry_out: Go
) -> None:
    broken = stub_run("break", code=DAMAGE[damage])
    result = carry_out(broken, stub_run("ok"))
    ends = {r.label: r.outcome.status for r in result.records.values()}
    assert ends["break"] == "error"
    if damage != "suite a file":
        assert ends["ok"] == "ok"
    assert Path("/etc").is_dir()


def test_a_worker_that_cannot_be_started_is_an_error_of_that_run(
    carry_out: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process, "Worker", refuse)
    (record,) = carry_out(stub_run()).records.values()
    assert record.outcome.status == "error"
    assert "cannot start: [Errno 11] Resource temporarily unavailable" in record.outcome.message


# ------------------------------------------------------------------------------- bounded, told once
def test_what_a_record_says_of_an_end_is_bounded_and_stays_so_when_read(tmp_path: Path) -> None:
    for text in ("x" * 5_000_000, "a\ufffdb" * 2_000_000, "\ud800" * 100_000):
        outcome = Outcome(status="error", message=text, log_tail=[text] * 100)
        assert len(outcome.message) <= LONGEST_MESSAGE
        record = Job(stub_run(), "s", tmp_path / "id", "cpu", tmp_path, "").blank()
        record.outcome = outcome
        records.write(record, tmp_path / "r.json")
        assert (tmp_path / "r.json").stat().st_size < 100_000
        assert records.read(tmp_path / "r.json") == record
    assert bounded("short") == "short"
    long = bounded("a" * 5000 + "end")
    assert (len(long), long[:3], long[-3:], "5,003 characters" in long) == (
        LONGEST_MESSAGE,
        "aaa",
        "end",
        True,
    )


def test_a_long_line_of_a_log_or_an_event_makes_no_long_record(carry_out: Go, display: Remember) -> None:
    result = carry_out(stub_run("flood"))
    (record,) = result.records.values()
    assert record.outcome.status == "error"
    assert len(record.model_dump_json()) < 50_000
    assert all(len(json.dumps(event)) < 2_000_000 for event in display.events)


def test_an_input_that_was_refused_is_refused_for_the_other_runs_that_have_it(
    carry_out: Go, settings: Settings
) -> None:
    elsewhere = {"data": {"source": "random", "seq_len": 16}}
    runs = [stub_run("bad-input", input="data", seed=seed) for seed in range(5)]
    other = Run.model_validate({**stub_run("ok").model_dump(), **elsewhere})
    result = carry_out(*runs, other)
    assert list(result.refused.values()) == ["text.txt: no such file"] * 5
    assert len(starts(settings)) == 2
    assert [record.outcome.status for record in result.records.values()] == ["ok"]


def test_a_message_that_names_no_input_refuses_one_run(carry_out: Go, settings: Settings) -> None:
    carry_out(*(stub_run("bad-input", seed=seed) for seed in range(3)))
    assert len(starts(settings)) == 3


# --------------------------------------------------------------------------------- killed for memory
@pytest.mark.parametrize(
    ("kills", "status", "said"),
    [
        ([0, 0], "error", "worker killed by SIGKILL"),
        (
            [0, 1],
            "oom",
            "worker killed by SIGKILL; the kernel did this, as host memory ran out, to a process",
        ),
        ([None, 1], "error", "worker killed by SIGKILL; the kernel does this when host memory runs out"),
    ],
)
def test_killed_twice_by_the_kernel_for_memory_is_out_of_memory(
    kills: list[int | None], status: str, said: str, carry_out: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        counts = iter(kills)
        monkeypatch.setattr(process, "kernel_kills", lambda counts=counts: next(counts))
        result = carry_out(stub_run("sigkill"))
    (record,) = result.records.values()
    assert record.outcome.status == status
    assert record.outcome.message.startswith(said)
    assert ("kernel" in record.outcome.message) is ("kernel" in said)


def test_a_run_that_crashes_by_itself_is_an_error_at_once(carry_out: Go) -> None:
    (record,) = carry_out(stub_run("lose-record")).records.values()
    assert (record.outcome.status, record.outcome.attempts) == ("error", None)


def test_kills_of_the_kernel_are_counted_where_it_tells(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n")
    assert process._counted(file) == 2
    assert process.kernel_kills() is not None


def test_the_time_left_is_the_sum_over_what_is_left_after_every_run() -> None:
    from harness.engine.sweep.estimates import Estimates, TimeLeft

    runs = [stub_run(size=size, seed=seed) for size in range(6) for seed in range(10)]
    estimates = Estimates()
    left = TimeLeft(estimates, runs)
    assert left.seconds() is None
    pending = list(runs)
    for number, run in enumerate(runs):
        record = Job(run, "s", Path("x"), "cpu", Path("c"), "").blank()
        record.outcome.status = "ok" if number % 7 else "error"
        left.learn(run, record, 1.0 + number % 13)
        left.remove(run)
        pending.remove(run)
        direct = estimates.total(pending)
        assert left.seconds() == pytest.approx(direct) if direct is not None else left.seconds() is None
