"""Two sweeps on one results folder share the work: nothing is done twice, nothing finished is touched."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeping import Remember, starts, stub_run, suite_of, wait_until

from harness import record as records
from harness.config import Run
from harness.engine import runner
from harness.engine.process import attempt
from harness.engine.process import lock as locks
from harness.engine.runner import Settings, Sweep, sweep
from harness.engine.sweep.device_lock import device_lock
from harness.errors import UserError
from harness.record import PROTOCOLS, Outcome

Go = Callable[..., Sweep]


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.05)


def both(settings: Settings, *runs: Run, **changes: object) -> tuple[list[Sweep], list[Remember], list[str]]:
    """Two sweeps at once, each with a cache and so a device of its own, and the runs that were started."""
    results: dict[int, Sweep] = {}
    shown = [Remember(), Remember()]
    each = [replace(settings, cache=settings.cache / str(number), **changes) for number in range(2)]  # type: ignore[arg-type]

    def go(number: int) -> None:
        results[number] = sweep(suite_of(*runs), each[number], shown[number], lambda run: "")

    threads = [threading.Thread(target=go, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[0], results[1]], shown, starts(each[0]) + starts(each[1])


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


def test_two_sweeps_share_the_runs_and_both_know_all_records(settings: Settings) -> None:
    runs = [stub_run("slow", seconds=0.2, seed=seed) for seed in range(6)]
    (first, second), shown, started = both(settings, *runs)
    assert Counter(Counter(started).values()) == {1: 6}
    assert min(len(first.done_now), len(second.done_now)) >= 1
    assert sorted(first.done_now + second.done_now) == sorted(set(started))
    assert first.records == second.records
    assert len(first.records) == 6
    assert any("by another sweep" in note for each in shown for note in each.notes)
    assert hidden(first.folder) == []


def test_runs_that_are_tried_again_are_shared_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [stub_run("error", seed=seed) for seed in range(4)]
    sweep(suite_of(*runs), settings, Remember(), lambda run: "")
    barrier, survey = threading.Barrier(2), runner.survey

    def at_once(*given: Any) -> Any:
        found = survey(*given)
        barrier.wait(60)  # a sweep that looks later than the other ends would try again what that one tried
        return found

    monkeypatch.setattr(runner, "survey", at_once)
    (first, _), _, started = both(settings, *runs, retry=True)
    assert Counter(Counter(started).values()) == {1: 4}
    assert len(first.records) == 4


def test_what_follows_an_older_protocol_is_measured_by_one_of_them(settings: Settings) -> None:
    runs = [stub_run("slow", seconds=0.1, seed=seed) for seed in range(4)]
    done = sweep(suite_of(*runs), settings, Remember(), lambda run: "")
    for record in done.records.values():
        older = record.model_copy(update={"protocols": {**PROTOCOLS, "time": 0}})
        records.write(older, done.folder / f"{record.run_id}.json")
    (first, second), _, started = both(settings, *runs)
    assert Counter(Counter(started).values()) == {1: 4}
    assert first.records == second.records
    assert all(record.finished for record in first.records.values())


def test_a_run_that_another_has_claimed_is_waited_for_after_the_others(
    carry_out: Go, settings: Settings, display: Remember
) -> None:
    runs = [stub_run(seed=seed, size=1) for seed in range(2)]
    folder = settings.results / "stub-1" / "stubs"
    folder.mkdir(parents=True)
    claim = attempt.claim(folder, runs[0].run_id)
    assert claim.take()
    results: list[Sweep] = []
    thread = threading.Thread(target=lambda: results.append(carry_out(*runs)))
    thread.start()
    wait_until(lambda: any("waiting" in note for note in display.notes))
    assert starts(settings) == [runs[1].run_id]
    assert f"another sweep is at work on 1 run (process {os.getpid()} on " in display.notes[-1]
    claim.give()
    thread.join(20)
    assert list(results[0].records) == [run.run_id for run in runs]


def test_with_a_budget_a_run_that_another_has_claimed_is_left(carry_out: Go, settings: Settings) -> None:
    run = stub_run(size=1)
    folder = settings.results / "stub-1" / "stubs"
    folder.mkdir(parents=True)
    claim = attempt.claim(folder, run.run_id)
    assert claim.take()
    assert [left.run_id for left in carry_out(run, budget_s=60.0).left] == [run.run_id]
    claim.give()


def test_a_claim_of_a_machine_that_died_ends(
    carry_out: Go, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.3)
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    run = stub_run(size=1)
    folder = settings.results / "stub-1" / "stubs"
    folder.mkdir(parents=True)
    (folder / f".{run.run_id}.lock").write_text('{"host": "gone", "process": 1, "machine": "gone"}')
    result = carry_out(run)
    assert list(result.records) == [run.run_id]
    assert hidden(folder) == []


def test_a_claim_that_cannot_be_made_refuses_that_run_alone(carry_out: Go, settings: Settings) -> None:
    runs = [stub_run(seed=seed, size=1) for seed in range(2)]
    folder = settings.results / "stub-1" / "stubs"
    (folder / f".{runs[0].run_id}.lock" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be removed"):
        carry_out(*runs)
    shutil.rmtree(folder)


def test_devices_are_locked_by_host_and_by_what_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: Remember
) -> None:
    def name(device: str, visible: str | None = None, host: str = "a", device_id: str | None = None) -> str:
        monkeypatch.setattr("socket.gethostname", lambda: host)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with device_lock(device, tmp_path, display, device_id) as lock:
            return lock.path.name

    assert name("cuda") == name("cuda:0") == name("cuda:0", "0") == name("cuda:1", "1,0")
    assert name("cuda:1") == name("cuda:0", "1") == name("cuda", "1, 2")
    assert len({name("cuda:0"), name("cuda:1"), name("cpu"), name("cuda:0", host="b")}) == 4
    assert name("cuda:0", device_id="cuda-GPU-7") == name("cuda:1", "3,2", device_id="cuda-GPU-7")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_another_sweep_interrupts_is_tried_here(carry_out: Go, settings: Settings) -> None:
    done = carry_out(stub_run())
    (record,) = done.records.values()
    path = done.folder / f"{record.run_id}.json"
    records.write(record.model_copy(update={"outcome": Outcome()}), path)
    assert carry_out(stub_run()).done_now == [record.run_id]
