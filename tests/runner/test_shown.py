"""What others see of a sweep while it is at work, of a stub worker and of the real one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import Remember, stub_run, stub_settings, suite_of, wait_until

from harness.config import Run
from harness.engine.process import progress_file
from harness.engine.process.child import WORKER
from harness.engine.runner import Settings, Sweep, sweep
from harness.engine.sweep.status import survey
from tests.support import fake_trackio

Go = Callable[..., Sweep]


def seen(settings: Settings) -> list[tuple[str, str, int | None]]:
    return [(each.state, each.row, each.seed) for each in survey([settings.results])]


def test_of_a_sweep_at_work_one_run_runs_the_others_wait_and_then_nothing_is_left(
    settings: Settings, carry_out: Go
) -> None:
    runs = [stub_run("slow", seconds=0.6, seed=seed) for seed in range(3)]
    thread = threading.Thread(target=lambda: carry_out(*runs))
    thread.start()
    first = [("running", "slow", 0), ("waiting", "slow", 1), ("waiting", "slow", 2)]
    wait_until(lambda: seen(settings) == first)
    wait_until(lambda: seen(settings) == [("running", "slow", 2)])
    thread.join(20)
    assert seen(settings) == []
    (folder,) = (settings.results / "stub-1").iterdir()
    assert not [path.name for path in folder.iterdir() if "progress" in path.name or path.name[0] == "."]


def test_a_run_that_was_killed_is_stopped_and_one_that_failed_is_not(
    settings: Settings, carry_out: Go
) -> None:
    carry_out(stub_run("sigkill"), stub_run("error", seed=1))
    assert seen(settings) == [("stopped", "sigkill", 0)]


def test_a_run_is_logged_and_its_record_is_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carry_out: Go, display: Remember
) -> None:
    for name, value in fake_trackio.installed(tmp_path).items():
        monkeypatch.setenv(name, value)
    logged = carry_out(stub_run("ok"), stub_run("error", seed=1), log=("trackio",))
    began, reported, *_ = fake_trackio.calls(tmp_path)
    assert (began[1]["name"].rpartition(" ")[0], began[1]["group"]) == ("ok seed 0", "stubs")
    assert reported == ["log", {"train/loss_nats": 2.0}, 1]
    assert [call[0] for call in fake_trackio.calls(tmp_path)] == ["init", "log", "finish"] * 2
    assert [each.outcome.status for each in logged.records.values()] == ["ok", "error"]
    assert display.notes == []


def test_a_logger_that_fails_is_one_warning_a_run_and_no_run_ends_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carry_out: Go, display: Remember
) -> None:
    for name, value in fake_trackio.installed(tmp_path, "fails").items():
        monkeypatch.setenv(name, value)
    result = carry_out(stub_run("ok"), stub_run("ok", seed=1), log=("trackio",))
    assert [each.outcome.status for each in result.records.values()] == ["ok", "ok"]
    assert len(display.notes) == 2
    assert all("--log trackio: [Errno 28] No space left on device" in note for note in display.notes)


def test_a_stopped_sweep_ends_its_log_as_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    for name, value in fake_trackio.installed(tmp_path).items():
        monkeypatch.setenv(name, value)

    class Stops(Remember):
        def event(self, event: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    chosen = stub_settings(tmp_path, log=("trackio",))
    with pytest.raises(KeyboardInterrupt):
        sweep(suite_of(stub_run("slow", seconds=5)), chosen, Stops(), lambda run: "")
    assert [call[0] for call in fake_trackio.calls(tmp_path)] == ["init", "finish"]
    assert seen(settings) == [("stopped", "slow", 0)]


# --------------------------------------------------------------------------------------- the real worker
STEPS, EVERY = 40, 8


class Looks(Remember):
    """Reads the progress of the run at each event; kills its worker once the state after `at` is saved."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__()
        self.folder, self.at, self.states = folder, at, set[tuple[str, str | None]]()

    def event(self, event: Mapping[str, Any]) -> None:
        super().event(event)
        self.states |= {(each.state, each.phase) for each in survey([self.folder])}
        if event.get("checkpoint") == self.at:
            for child in psutil.Process().children():
                if "harness.engine.worker" in child.cmdline():
                    os.kill(child.pid, signal.SIGKILL)


def go(folder: Path, display: Looks) -> Sweep:
    train = {"stage": "pretrain", "steps": STEPS, "batch": 2, "checkpoint": {"every": EVERY}}
    content = {"model": {"source": "shape", "name": "nano"}, "data": {"source": "random", "seq_len": 16}}
    run = Run.model_validate({**content, "method": "full", "train": train})
    settings = Settings(folder / "results", folder / "cache", device="cpu", command=WORKER, log=("trackio",))
    return sweep(suite_of(run), settings, display, lambda run: "")


def test_a_real_run_tells_its_phases_and_updates_and_goes_on_in_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake_trackio.installed(tmp_path).items():
        monkeypatch.setenv(name, value)
    killed = go(tmp_path, Looks(tmp_path / "results", 2 * EVERY))
    (path,) = killed.folder.glob(f"*{progress_file.SUFFIX}")
    lines = progress_file.read(path)
    assert lines[-1]["status"] == "interrupted"
    assert {line["checkpoint"] for line in lines if "checkpoint" in line} == {EVERY, 2 * EVERY}
    (stopped,) = survey([tmp_path / "results"])
    assert (stopped.state, stopped.checkpoint, stopped.steps) == ("stopped", 2 * EVERY, STEPS)
    display = Looks(tmp_path / "results", STEPS)
    go(tmp_path, display)
    whole = progress_file.read(path)
    assert whole[: len(lines)] == lines
    news = whole[len(lines) :]
    assert [line["resumed"] for line in news if "resumed" in line] == [2 * EVERY]
    steps = [line["step"] for line in news if "loss" in line]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (2 * EVERY + 2, STEPS)
    assert all({"lr", "mean_loss"} <= line.keys() for line in news if "loss" in line)
    assert any("peak_bytes" in line for line in news)
    assert {line["phase"] for line in news if "phase" in line} == {"load", "prepare", "train"}
    assert ("running", "train") in display.states
    (first, second) = [call[1]["name"] for call in fake_trackio.calls(tmp_path) if call[0] == "init"]
    assert first == second, "one log for both attempts"
