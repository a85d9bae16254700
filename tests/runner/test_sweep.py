"""What a sweep does, run by run, with a stub for the worker."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sweeping import ROOT, Remember, alive, starts, stub_run, suite_of, wait_until, workers

from harness import record as records
from harness.config import CheckpointConfig
from harness.engine.process import carry_out as carrying
from harness.engine.process.carry_out import LOG_TAIL_LINES
from harness.engine.process.job import Job
from harness.engine.process.lock import Lock
from harness.engine.resume import names
from harness.engine.runner import Settings, Sweep, sweep
from harness.engine.sweep.estimates import Estimates
from harness.engine.sweep.resolution import resolve
from harness.errors import UserError
from harness.record import PHASES, Outcome

Go = Callable[..., Sweep]
#: Time in which a worker gets to the place where it hangs, on a busy machine, too.
DEADLINE_S = 2.0


def run_id_of(result: Sweep) -> str:
    (path,) = result.folder.glob("*.json")
    return path.stem


def only(result: Sweep) -> records.Record:
    (record,) = result.records.values()
    return record


# ------------------------------------------------------------------------------- before anything starts
def test_resolved_runs_have_complete_options_and_a_place(settings: Settings) -> None:
    plan = resolve([stub_run(seed=1)], command=settings.command)
    assert plan.runs[0].method[0].options == {"do": "ok", "size": 1}
    assert (plan.device, plan.machine) == ("stub", "stub-1")


def test_a_bad_option_stops_the_sweep_before_anything_starts(carry_out: Go, settings: Settings) -> None:
    with pytest.raises(UserError, match="did you mean 'rank'"):
        carry_out(stub_run("ok"), stub_run("bad-option"))
    assert starts(settings) == []


def test_a_worker_that_cannot_resolve_is_told_in_one_line(carry_out: Go) -> None:
    with pytest.raises(UserError, match="no module named 'nowhere'") as caught:
        carry_out(stub_run("bad-import"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_results_folder_that_cannot_be_written_to_is_said_before_anything_starts(
    number: int, carry_out: Go, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        UserError, match=f"cannot be written to: {os.strerror(number)}; choose another folder"
    ):
        carry_out(stub_run())
    assert starts(settings) == []


def test_a_results_folder_that_cannot_be_made_is_a_user_error(carry_out: Go, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        carry_out(stub_run(), results=tmp_path / "file")


@pytest.mark.parametrize("content", ["{", "{}", '{"schema_version": 99}'])
def test_a_file_in_the_way_that_is_no_record_is_never_overwritten(
    content: str, carry_out: Go, settings: Settings
) -> None:
    first = carry_out(stub_run(seed=1))
    path = first.folder / f"{only(first).run_id}.json"
    path.write_text(content)
    with pytest.raises(UserError, match=path.name):
        carry_out(stub_run(seed=0), stub_run(seed=1), retry=True)
    assert path.read_text() == content
    assert len(starts(settings)) == 1


def test_a_record_under_another_name_is_refused(carry_out: Go) -> None:
    first = carry_out(stub_run(seed=1))
    path = first.folder / f"{only(first).run_id}.json"
    path.rename(path.with_name("renamed.json"))
    with pytest.raises(UserError, match=r"renamed\.json.*move it away"):
        carry_out(stub_run(seed=1))


# ------------------------------------------------------------------------------------- layout and order
def test_a_run_leaves_its_record_beside_its_folder(carry_out: Go, settings: Settings) -> None:
    result = carry_out(stub_run(seed=3))
    record = only(result)
    assert result.folder == settings.results / "stub-1" / "stubs"
    assert sorted(path.name for path in result.folder.iterdir()) == [record.run_id, f"{record.run_id}.json"]
    assert (result.folder / record.run_id / "log.txt").read_text() == "a line for the log\n"
    assert record == records.read(result.folder / f"{record.run_id}.json")
    assert (record.suite, record.seed, record.rerun) == (
        "stubs",
        3,
        f"lorebench run --only {record.run_id}",
    )


def test_a_job_file_reads_back_as_the_job(tmp_path: Path) -> None:
    job = Job(stub_run(seed=2), "stubs", tmp_path / "id", "cpu", tmp_path / "cache", "lorebench run")
    job.folder.mkdir()
    job.write()
    assert Job.read(job.file) == job
    assert json.loads(job.file.read_text())["folder"] == str(tmp_path / "id")
    assert job.record == tmp_path / "id.json"


def test_repeats_are_interleaved_and_else_the_order_is_the_suites(carry_out: Go, display: Remember) -> None:
    carry_out(
        *(
            stub_run(label=f"{name}{repeat}", repeat=repeat, size=ord(name))
            for name in "ba"
            for repeat in (0, 1)
        )
    )
    assert display.started == ["b0", "a0", "b1", "a1"]


def test_two_spellings_of_one_config_are_one_run(carry_out: Go, settings: Settings) -> None:
    result = carry_out(stub_run(label="same"), stub_run(label="same", size=1))
    assert [record.label for record in result.records.values()] == ["same"]
    assert len(starts(settings)) == 1


def test_two_labels_of_one_config_are_refused_once_its_options_are_complete(carry_out: Go) -> None:
    with pytest.raises(UserError, match=r"the rows 'short' .* and 'long' .* are one run under two labels"):
        carry_out(stub_run(label="short"), stub_run(label="long", size=1))


def test_events_of_the_worker_reach_the_display_and_babble_does_not(carry_out: Go, display: Remember) -> None:
    assert only(carry_out(stub_run("babble"))).outcome.status == "ok"
    assert display.events == [{"phase": "train", "step": 1, "steps": 2, "loss": 2.0}]


# --------------------------------------------------------------------------------------- ways to end
@pytest.mark.parametrize("status", ["oom", "diverged", "unsupported", "error"])
def test_a_failure_that_the_worker_records_is_a_row_and_the_sweep_goes_on(status: str, carry_out: Go) -> None:
    result = carry_out(stub_run(status), stub_run("ok"))
    assert [record.outcome.status for record in result.records.values()] == [status, "ok"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_is_killed_is_tried_again_and_when_killed_again_an_error_in_its_phase(
    phase: str, carry_out: Go
) -> None:
    run = stub_run("sigkill", phase=phase)
    first = carry_out(run)
    assert (first.records, list(first.killed)) == ({}, [run_id_of(first)])
    outcome = records.read(first.folder / f"{run_id_of(first)}.json").outcome
    assert (outcome.status, outcome.phase, outcome.attempts) == ("interrupted", phase, 1)
    outcome = only(carry_out(run)).outcome
    assert (outcome.status, outcome.phase, outcome.attempts) == ("error", phase, 2)
    assert outcome.message.startswith("worker killed by SIGKILL")
    assert outcome.log_tail == ["a line for the log"]


def test_a_run_with_a_checkpoint_may_be_killed_once_more(carry_out: Go) -> None:
    run = stub_run("sigkill")
    found = []
    for _ in range(3):
        result = carry_out(run)
        kept = result.folder / f"{run_id_of(result)}.checkpoints" / names.name(10, "0" * 8)
        kept.mkdir(parents=True, exist_ok=True)
        found.append(records.read(result.folder / f"{run_id_of(result)}.json").outcome.status)
    assert found == ["interrupted", "interrupted", "error"]


def test_a_checkpoint_below_a_broken_one_is_progress(tmp_path: Path) -> None:
    job = Job(stub_run(), "stubs", tmp_path / "id", "cpu", tmp_path / "cache", "")
    broken, new = (job.checkpoints / names.name(step, "0" * 8) for step in (91, 20))
    broken.mkdir(parents=True)
    before, death = names.below(job.checkpoints), Outcome(status="error", message="killed", attempts=2)
    assert carrying._resumable(job, death, before) == death
    broken.rename(new)  # as where the first one that is whole takes the place of the broken one
    found = carrying._resumable(job, death, before)
    assert (found.status, found.attempts) == ("interrupted", 1)
    assert found.message == "killed; the same command goes on from update 20"


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_hangs_is_a_timeout_in_its_phase(phase: str, carry_out: Go, settings: Settings) -> None:
    outcome = only(carry_out(stub_run("hang", phase=phase), deadline_s=DEADLINE_S)).outcome
    assert (outcome.status, outcome.phase) == ("timeout", phase)
    assert outcome.message == f"stopped at the deadline of {DEADLINE_S:g} s"
    assert not alive(workers(settings)[0])


@pytest.mark.parametrize(("phase", "quiet_s", "other_s"), [("train", 0.6, 90.0), ("evaluate", 90.0, 0.6)])
def test_a_worker_without_progress_hangs_without_a_deadline(
    phase: str, quiet_s: float, other_s: float, carry_out: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "QUIET_S", {"train": quiet_s})
    monkeypatch.setattr(carrying, "OTHER_QUIET_S", other_s)
    outcome = only(carry_out(stub_run("hang", phase=phase), deadline_s=None)).outcome
    assert (outcome.status, outcome.phase) == ("timeout", phase)
    assert outcome.message == "it hangs: no progress for 0.01 minutes"


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(carry_out: Go, settings: Settings) -> None:
    began = time.monotonic()
    record = only(carry_out(stub_run("ignore-sigterm"), deadline_s=DEADLINE_S, grace_s=0.3))
    assert (record.outcome.status, record.outcome.phase) == ("timeout", "export")
    assert not alive(workers(settings)[0])
    assert time.monotonic() - began < 30  # the worker would sleep for 60 s


def test_a_worker_that_answers_sigterm_with_an_error_is_still_a_timeout(carry_out: Go) -> None:
    outcome = only(carry_out(stub_run("answer-sigterm"), deadline_s=DEADLINE_S)).outcome
    assert (outcome.status, outcome.phase) == ("timeout", "evaluate")


def test_a_result_that_was_written_before_the_deadline_stands(carry_out: Go) -> None:
    assert only(carry_out(stub_run("finish-then-hang"), deadline_s=DEADLINE_S)).outcome.status == "ok"


def test_a_worker_that_exits_without_a_result_is_an_error_with_the_end_of_its_log(carry_out: Go) -> None:
    outcome = only(carry_out(stub_run("exit"))).outcome
    assert (outcome.status, outcome.message) == ("error", "worker exited with code 3 and left no result")
    assert outcome.log_tail == [f"line {number}" for number in range(100 - LOG_TAIL_LINES, 100)]


def test_a_record_that_is_gone_is_written_again(carry_out: Go) -> None:
    record = only(carry_out(stub_run("lose-record")))
    assert (record.outcome.status, record.outcome.message) == ("error", "worker killed by SIGSEGV")


def test_children_of_a_worker_end_with_it(carry_out: Go, settings: Settings) -> None:
    assert only(carry_out(stub_run("leave-children"))).outcome.status == "ok"
    child = int((settings.cache / "child.txt").read_text())
    wait_until(lambda: not alive(child))


def test_bad_input_found_late_is_told_and_tried_again_once_it_is_repaired(
    carry_out: Go, settings: Settings
) -> None:
    result = carry_out(stub_run("bad-input"), stub_run("ok"))
    assert list(result.refused.values()) == ["text.txt: no such file"]
    assert [record.outcome.status for record in result.records.values()] == ["ok"]
    carry_out(stub_run("bad-input"), stub_run("ok"))
    assert len(starts(settings)) == 3


# ------------------------------------------------------------------------------------------- going on
def test_running_again_does_nothing_twice(carry_out: Go, settings: Settings) -> None:
    runs = [stub_run("ok"), stub_run("oom"), stub_run("exit")]
    first = carry_out(*runs)
    again = carry_out(*runs)
    assert len(starts(settings)) == 3
    assert again.records == first.records
    assert (len(first.done_now), again.done_now) == (3, [])


def test_retry_does_again_only_what_is_not_ok(carry_out: Go, settings: Settings) -> None:
    runs = [stub_run("ok"), stub_run("oom"), stub_run("exit")]
    carry_out(*runs)
    result = carry_out(*runs, retry=True)
    assert len(starts(settings)) == 5
    assert len(result.records) == 3


def test_runs_that_failed_are_named_with_what_repeats_them(carry_out: Go, display: Remember) -> None:
    runs = [stub_run("ok"), stub_run("oom"), stub_run("exit")]
    carry_out(*runs)
    carry_out(*runs)
    assert display.notes == ["2 finished runs failed (error, oom): --retry repeats"]


def test_retry_makes_the_checkpoint_that_is_to_stay(
    carry_out: Go, settings: Settings, display: Remember
) -> None:
    wanted = stub_run("ok")
    staying = wanted.train.model_copy(update={"checkpoint": CheckpointConfig(stay=True)})
    wanted = wanted.model_copy(update={"train": staying})
    done = carry_out(wanted)
    carry_out(wanted)
    assert display.notes == ["1 finished run without the last checkpoint: --retry repeats"]
    carry_out(wanted, retry=True)
    assert len(starts(settings)) == 2
    kept = done.folder / f"{only(done).run_id}{names.SUFFIX}"
    (kept / names.name(staying.steps, "0" * 8)).mkdir(parents=True)
    carry_out(wanted, retry=True)
    assert len(starts(settings)) == 2


def test_retry_does_again_what_has_no_weights_though_they_were_asked_for(
    carry_out: Go, settings: Settings, display: Remember
) -> None:
    wanted = stub_run("ok").model_copy(update={"save_weights": True})
    first = carry_out(wanted)
    carry_out(wanted)
    assert len(starts(settings)) == 1
    assert display.notes == ["1 finished run without saved weights: --retry repeats"]
    again = carry_out(wanted, stub_run("ok", seed=1), retry=True)
    assert len(starts(settings)) == 3
    assert {record.outcome.status for record in again.records.values()} == {"ok"}
    weights = first.folder / only(first).run_id / "weights"
    weights.mkdir()
    (weights / "model.safetensors").touch()
    carry_out(wanted, retry=True)
    assert len(starts(settings)) == 3


def test_an_interrupted_record_and_its_files_are_replaced(carry_out: Go, settings: Settings) -> None:
    first = carry_out(stub_run())
    record = only(first)
    records.write(record.model_copy(update={"outcome": Outcome()}), first.folder / f"{record.run_id}.json")
    stale = first.folder / record.run_id / "samples" / "old.jsonl"
    stale.parent.mkdir()
    stale.write_text("{}")
    half = first.folder / f".{record.run_id}.json.123.tmp"
    half.write_text("{")
    assert only(carry_out(stub_run())).outcome.status == "ok"
    assert len(starts(settings)) == 2
    assert not stale.exists()
    assert not half.exists()


def test_a_record_of_an_older_protocol_is_measured_again(
    carry_out: Go, settings: Settings, display: Remember
) -> None:
    first = carry_out(stub_run())
    old = only(first).model_copy(update={"protocols": {**records.PROTOCOLS, "time": 0}})
    records.write(old, first.folder / f"{old.run_id}.json")
    assert only(carry_out(stub_run())).protocols == records.PROTOCOLS
    assert len(starts(settings)) == 2
    assert any("older measurement protocols" in note for note in display.notes)


# -------------------------------------------------------------------------------------------- budget
def test_a_budget_starts_nothing_that_would_not_finish(
    carry_out: Go, settings: Settings, display: Remember
) -> None:
    carry_out(stub_run(seed=0, wall_s=500.0), stub_run(seed=0, wall_s=1.0))
    long, short = stub_run(seed=1, wall_s=500.0), stub_run(seed=1, wall_s=1.0)
    result = carry_out(long, short, budget_s=60.0)
    assert [run.method[0].options["wall_s"] for run in result.left] == [500.0]
    assert [record.config["method"][0]["options"]["wall_s"] for record in result.records.values()] == [1.0]
    assert display.notes == ["left: 1 of 2 runs would not finish within the budget"]
    assert len(carry_out(long, short).records) == 2
    assert len(starts(settings)) == 4


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_budget_counts_what_a_checkpoint_has(carry_out: Go, display: Remember, from_scratch: bool) -> None:
    done = carry_out(stub_run(seed=0, wall_s=500.0))
    run = stub_run(seed=1, wall_s=500.0)
    kept = done.folder / f"{only(done).config_id}-s1-r0{names.SUFFIX}"
    (kept / names.name(run.train.steps - 10, "0" * 8)).mkdir(parents=True)
    result = carry_out(run, budget_s=60.0, from_scratch=from_scratch)  # 50 s of 500, or all of them
    assert len(result.left) == from_scratch
    assert display.etas[1:] == ([] if from_scratch else [pytest.approx(50.0)])


def test_with_a_budget_a_run_that_nothing_is_known_of_starts(carry_out: Go) -> None:
    assert len(carry_out(stub_run(), budget_s=30.0).records) == 1


def test_a_budget_that_is_spent_starts_nothing(carry_out: Go, settings: Settings) -> None:
    assert len(carry_out(stub_run(), budget_s=0.0).left) == 1
    assert starts(settings) == []


def test_a_run_is_estimated_by_its_own_config_first_and_by_its_suite_else() -> None:
    estimates = Estimates()
    mine, other, new = stub_run(size=1), stub_run(size=2), stub_run(size=3)
    assert estimates.of(mine) is None
    for run, seconds in ((mine, 10.0), (mine, 20.0), (other, 60.0)):
        ok = Job(run, "s", Path("x"), "cpu", Path("c"), "").blank()
        ok.outcome.status = "ok"
        estimates.add(ok, seconds)
    assert estimates.of(mine) == 20.0
    assert estimates.of(new) == 30.0
    assert estimates.total([mine, new]) == 50.0


def test_a_run_that_failed_early_does_not_make_the_next_look_short() -> None:
    estimates = Estimates()
    failed = Job(stub_run(), "s", Path("x"), "cpu", Path("c"), "").blank()
    failed.outcome.status = "error"
    estimates.add(failed, 0.1)
    assert estimates.of(stub_run()) is None


# ------------------------------------------------------------------------------------- lock and Ctrl-C
def test_a_device_that_cannot_be_locked_is_a_note(
    settings: Settings, display: Remember, carry_out: Go
) -> None:
    (settings.cache / f"device-{socket.gethostname()}-stub.lock").mkdir(parents=True)
    assert only(carry_out(stub_run())).outcome.status == "ok"
    (note,) = display.notes
    assert "stub.lock: the device cannot be locked: Is a directory; another sweep may disturb" in note


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_of_the_system_runs_are_claimed_all_the_same(
    number: int, monkeypatch: pytest.MonkeyPatch, display: Remember, carry_out: Go, settings: Settings
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    result = carry_out(stub_run(), stub_run(seed=1))
    assert [record.outcome.status for record in result.records.values()] == ["ok", "ok"]
    assert display.notes == []
    assert not [*result.folder.glob(".*"), *settings.cache.glob("*.lock")]


def test_one_sweep_at_a_time_has_the_device_and_the_other_says_that_it_waits(
    settings: Settings, display: Remember, carry_out: Go
) -> None:
    settings.cache.mkdir()
    lock = Lock(settings.cache / f"device-{socket.gethostname()}-stub.lock")
    assert lock.take()
    thread = threading.Thread(target=lambda: carry_out(stub_run()))
    thread.start()
    wait_until(lambda: display.notes)
    assert starts(settings) == []
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert display.notes == [f"waiting: another sweep uses the device stub ({holder})"]
    lock.give()
    thread.join(timeout=20)
    assert len(starts(settings)) == 1
    assert not list(settings.cache.glob("*.lock"))


SCRIPT = """
import signal
import sys
# As in a terminal: where a test runs in the background, its children would inherit that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {paths!r}
from pathlib import Path
from sweeping import stub_run, stub_settings, suite_of
from harness.engine.process.progress import choose
from harness.engine.runner import sweep
runs = [stub_run("ok"), stub_run("slow", seconds=float(sys.argv[2])), stub_run("ok", seed=1)]
result = sweep(suite_of(*runs), stub_settings(Path(sys.argv[1])), choose(), lambda run: "")
assert "torch" not in sys.modules, "the parent imported torch"
print(len(result.records), len(result.done_now))
"""


def start_sweep(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    """A sweep in a process of its own whose second run takes so many seconds."""
    script = SCRIPT.format(paths=[str(ROOT), str(Path(__file__).parent)])
    argv = [sys.executable, "-c", script, str(tmp_path), str(seconds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_parent_never_imports_torch(tmp_path: Path) -> None:
    out, err = start_sweep(tmp_path, 0.0).communicate(timeout=60)
    assert (out, err.count("Traceback")) == ("3 3\n", 0), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_is_killed_leaves_no_orphan_and_goes_on_where_it_was(
    number: signal.Signals, tmp_path: Path, settings: Settings
) -> None:
    parent = start_sweep(tmp_path, 3.0)
    wait_until(lambda: len(starts(settings)) == 2)
    parent.send_signal(number)
    _, err = parent.communicate(timeout=20)
    worker = workers(settings)[1]
    wait_until(lambda: not alive(worker))
    interrupted = settings.results / "stub-1" / "stubs" / f"{starts(settings)[1]}.json"
    assert records.read(interrupted).outcome.status == "interrupted"
    assert ("Interrupted" in err) == (number != signal.SIGKILL)
    out, err = start_sweep(tmp_path, 3.0).communicate(timeout=60)
    assert out == "3 2\n", err
    assert starts(settings)[0] not in starts(settings)[1:]


STUCK = """
import ctypes, os, sys
from pathlib import Path
from harness.engine import worker
def stuck(*_):
    Path("pid").write_text(f"{os.getpid()}\\n")
    ctypes.PyDLL(None).sleep(600)  # native code that does not let other threads run
worker.resolve = worker.REQUESTS["simulate"] = stuck
sys.exit(worker.main(sys.argv[1:]))
"""
ASKING = """
import sys
from pathlib import Path
from harness.config import Run
from harness.engine.sweep import resolution
from harness.engine.forecast.cache import ForecastRequest
from harness.engine.forecast.client import ForecastClient
what, run, command = sys.argv[1], Run.model_validate_json(sys.argv[2]), sys.argv[3:]
if what == "resolve":
    resolution.resolve([run], command=command)
else:
    ForecastClient(Path("cache"), command).ask([ForecastRequest(run)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they end when they next run Python")
@pytest.mark.parametrize("what", ["resolve", "simulate"])
def test_workers_that_answer_questions_end_with_a_killed_parent(what: str, tmp_path: Path) -> None:
    run = stub_run().model_dump_json()
    parent = subprocess.Popen(
        [sys.executable, "-c", ASKING, what, run, sys.executable, "-c", STUCK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pid = tmp_path / "pid"
    wait_until(lambda: pid.is_file() and pid.read_text().endswith("\n"))
    parent.kill()
    parent.wait()
    worker = int(pid.read_text())
    try:
        wait_until(lambda: not alive(worker))
    finally:
        if alive(worker):
            os.kill(worker, signal.SIGKILL)


def test_ctrl_c_says_so_in_the_record_and_stops_the_worker(tmp_path: Path, settings: Settings) -> None:
    parent = start_sweep(tmp_path, 60.0)
    wait_until(lambda: len(starts(settings)) == 2)
    time.sleep(1.0)  # the sweep reads of the phase
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=20)
    assert not alive(workers(settings)[1])
    outcome = records.read(settings.results / "stub-1" / "stubs" / f"{starts(settings)[1]}.json").outcome
    assert (outcome.status, outcome.phase, outcome.message) == ("interrupted", "train", "stopped by Ctrl-C")


def test_a_display_that_breaks_takes_the_worker_down(settings: Settings) -> None:
    class Broken(Remember):
        def event(self, event: object) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        sweep(suite_of(stub_run("hang")), replace(settings, grace_s=1.0), Broken(), lambda run: "")
    assert not alive(workers(settings)[0])
