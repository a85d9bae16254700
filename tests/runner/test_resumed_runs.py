"""The real worker, killed and started again by the same command: the record and the weights of one run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import Remember, suite_of

from harness import imports, series
from harness.config import Run
from harness.engine.process.child import WORKER
from harness.engine.resume import names
from harness.engine.runner import Settings, Sweep, sweep
from harness.record import Record

STEPS, EVERY = 200, 40


class Killing(Remember):
    """Sends a signal to the worker as soon as it reports some checkpoint, or that many updates."""

    def __init__(self, key: str = "", value: int = 0, number: signal.Signals = signal.SIGKILL) -> None:
        super().__init__()
        self.key, self.value, self.number = key, value, number

    def event(self, event: Mapping[str, Any]) -> None:
        super().event(event)
        if self.key and event.get(self.key) == self.value:
            self.key = ""  # once
            for child in psutil.Process().children():
                if child.status() != psutil.STATUS_ZOMBIE and "harness.engine.worker" in child.cmdline():
                    os.kill(child.pid, self.number)


def run_of(**train: Any) -> Run:
    return Run.model_validate(
        {
            "method": {"galore": {"rank": 8, "period": 10, "scale": 1.0}},
            "data": {"source": "embedded", "documents": 200, "seq_len": 32},
            "train": {"steps": STEPS, "batch": 2, "checkpoint": {"every": EVERY}, **train},
            "evaluate": {"perplexity": ["world-b"]},
            "save_weights": True,
        }
    )


def scored_run() -> Run:
    during = {"perplexity": ["world-b"], "during": {"every": 10}, "batch": 8}
    return Run.model_validate(
        run_of(steps=40, checkpoint={"every": 8}).model_dump(mode="json") | {"evaluate": during}
    )


def curve_of(record: Record) -> list[tuple[int, Mapping[str, float]]]:
    return [(score.step, score.perplexity) for score in series.scores(record)]


class KillingInAScore(Remember):
    """Sends a signal to the worker once it begins to score its model after so many updates."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self.step, self.number = step, number

    def event(self, event: Mapping[str, Any]) -> None:
        super().event(event)
        if event.get("step") == self.step and "task" in event:
            for child in psutil.Process().children():
                if "harness.engine.worker" in child.cmdline():
                    os.kill(child.pid, self.number)


def go(folder: Path, run: Run, display: Remember | None = None, **changes: Any) -> Sweep:
    given = {"device": "cpu", "command": WORKER, **changes}
    settings = Settings(folder / "results", folder / "cache", **given)
    return sweep(suite_of(run), settings, display or Remember(), lambda run: "")


def weights(result: Sweep, run_id: str) -> str:
    files = sorted((result.folder / run_id / "weights").glob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def content(record: Record) -> dict[str, Any]:
    """What a record and its series say, without times and what the operating system counts."""
    found = record.model_dump(mode="json", exclude={"time", "series", "started_at"})
    del found["memory"]["host_rss_bytes"]
    found["training"].pop("resumed", None)
    updates = series.read(record)
    found["series"] = [updates.loss, updates.lr, updates.grad_norm, updates.ranks]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Record]:
    result = go(tmp_path_factory.mktemp("whole"), run_of())
    (record,) = result.records.values()
    assert record.outcome.status == "ok", record.outcome
    assert record.training is not None
    assert record.training.resumed == []
    return result, record


def test_killed_in_training_and_at_its_end_a_run_has_the_same_record_and_weights(
    tmp_path: Path, whole: tuple[Sweep, Record]
) -> None:
    for at in (EVERY, 3 * EVERY, STEPS):
        killed = go(tmp_path, run_of(), Killing("checkpoint", at))
        (said,) = killed.killed.values()
        assert f"goes on from update {at}" in said
    result = go(tmp_path, run_of())
    (record,) = result.records.values()
    assert content(record) == content(whole[1])
    assert weights(result, record.run_id) == weights(whole[0], record.run_id)
    assert record.training is not None
    assert record.training.resumed == [EVERY, 3 * EVERY, STEPS]
    assert record.time is not None
    assert sum(record.time.phase_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)
    assert not list(result.folder.glob("*.checkpoints"))


def test_sigterm_saves_first(tmp_path: Path, whole: tuple[Sweep, Record]) -> None:
    display = Killing("step", 10, signal.SIGTERM)
    alone = (sys.executable, "-P", imports.__file__, "harness.engine.worker")  # that others fork dies at once
    killed = go(tmp_path, run_of(checkpoint={"every": 1000}), display, command=alone)
    (folder,) = killed.folder.glob("*.checkpoints")
    saved = names.newest_step(folder)
    assert 10 <= saved < STEPS
    (said,) = killed.killed.values()
    assert said == f"worker killed by SIGTERM; the same command goes on from update {saved}"
    (record,) = go(tmp_path, run_of()).records.values()
    assert content(record) == content(whole[1])
    assert record.training is not None
    assert record.training.resumed == [saved]


def test_a_deadline_saves_first(tmp_path: Path) -> None:
    result = go(tmp_path, run_of(steps=1_000_000), deadline_s=6.0)
    (said,) = result.killed.values()
    (folder,) = result.folder.glob("*.checkpoints")
    assert said == (
        f"stopped at the deadline of 6 s; the same command goes on from update {names.newest_step(folder)}"
    )


def test_killed_in_the_middle_of_a_score_a_run_has_the_same_curve(tmp_path: Path) -> None:
    run = scored_run()
    (whole,) = go(tmp_path / "whole", run).records.values()
    folder = tmp_path / "ended"
    killed = go(folder, run, KillingInAScore(20, signal.SIGKILL))
    (said,) = killed.killed.values()
    at_its_end = go(folder, run, Killing("checkpoint", 40))  # after which no score in training shows the peak
    assert at_its_end.killed
    (record,) = go(folder, run).records.values()
    assert content(record) == content(whole)
    assert [score.step for score in series.scores(record)] == [10, 20, 30, 40]
    assert curve_of(record) == curve_of(whole)
    assert record.training is not None
    assert "goes on from update 16" in said
    assert record.training.resumed == [16, 40]
    assert record.time is not None
    assert sum(record.time.phase_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)


def claim_other_torch(folder: Path) -> None:
    """Let the newest checkpoint say that another torch wrote it, its hash included."""
    path = names.below(folder)[0]
    manifest = path / "checkpoint.json"
    found = json.loads(manifest.read_text())
    found["about"]["torch"] = "1.0"
    manifest.write_text(json.dumps(found))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    path.rename(path.with_name(names.name(found["step"], digest)))


def test_another_torch_is_refused_unless_it_begins_anew(tmp_path: Path, whole: tuple[Sweep, Record]) -> None:
    killed = go(tmp_path, run_of(), Killing("checkpoint", 2 * EVERY))
    (folder,) = killed.folder.glob("*.checkpoints")
    claim_other_torch(folder)
    refused = go(tmp_path, run_of())
    (said,) = refused.refused.values()
    assert said.startswith(f"the checkpoint at update {2 * EVERY} was written with torch 1.0, here is ")
    assert names.newest_step(folder) == 2 * EVERY
    (record,) = go(tmp_path, run_of(), from_scratch=True).records.values()
    assert content(record) == content(whole[1])
    assert record.training is not None
    assert record.training.resumed == []
