"""Loggers by name: what they are told, what is refused, and that none of them is in the way of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.config import Run
from harness.engine.loggers import client, registry, server
from harness.engine.loggers.client import Logs
from harness.engine.loggers.logger import About, of_event, of_record
from harness.engine.process.job import Job
from harness.errors import UserError
from harness.record import Accuracy, Memory, Outcome, Perplexity, Quality, Record, Time, TrainMemory
from tests.support import fake_trackio

REPORT = {"phase": "train", "step": 40, "steps": 90, "loss": 3.0, "mean_loss": 3.5, "lr": 1e-3}


def about(folder: Path, key: str = "0123456789abcdef") -> About:
    config = {"train": {"lr": 1e-3}, "method": [{"name": "full"}], "calibration": None}
    return About(key, "full seed 0", "small", "0a-s0-r0", folder, config)


def ended(status: str = "ok") -> Record:
    run = Run.model_validate({"model": {"source": "shape", "name": "nano"}, "method": "full"})
    record = Job(run, "s", Path("0a-s0-r0"), "cpu", Path("c"), "").blank()
    record.outcome = Outcome.model_validate({"status": status})
    record.time = Time(tokens_per_s=512.0)
    parts = dict.fromkeys(TrainMemory.model_fields, 0)
    record.memory = Memory(meter="live", train=TrainMemory(**{**parts, "peak_allocated_bytes": 4096}))
    counts = {"nll_nats": 1.0, "tokens": 10, "windows": 1, "dropped_tokens": 0, "text": "x"}
    found = {"heldout": 12.5, "odd": float("inf")}
    scores = {name: Perplexity(perplexity=value, **counts) for name, value in found.items()}
    tasks = {"arc": Accuracy(accuracy=0.25, correct=1, documents=4, version="1")}
    record.quality = Quality(perplexity=scores, tasks=tasks)
    return record


# ----------------------------------------------------------------------------------- what they are told
def test_a_report_becomes_values_with_units_in_their_names() -> None:
    assert of_event({**REPORT, "tokens_per_s": 512.0, "peak_bytes": 4096}) == {
        "train/loss_nats": 3.0,
        "train/mean_loss_nats": 3.5,
        "train/lr": 1e-3,
        "train/tokens_per_s": 512.0,
        "memory/train_peak_bytes": 4096.0,
    }
    assert of_event({"phase": "evaluate", "task": "arc"}) == {}
    assert of_event({"checkpoint": 40, "step": 40, "steps": 90}) == {}


def test_a_record_ends_a_log_with_its_finite_scores() -> None:
    assert of_record(ended()) == {
        "perplexity/heldout": 12.5,
        "accuracy/arc": 0.25,
        "train/tokens_per_s": 512.0,
        "memory/train_peak_bytes": 4096.0,
    }


def test_a_run_is_told_as_json_holds_it_with_its_settings_by_dotted_keys(tmp_path: Path) -> None:
    run = about(tmp_path)
    assert About.of(run.plain()) == run
    assert run.settings == {"train.lr": "0.001", "method.0.name": "full"}


# ----------------------------------------------------------------------------------- what is refused
def test_names_are_known_and_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda package: "1.0")
    assert registry.names("tensorboard, wandb") == ("tensorboard", "wandb")
    for text, says in (
        ("tensorbord", "no logger 'tensorbord'; did you mean 'tensorboard'"),
        ("", "no logger ''"),
        ("wandb,wandb", "wandb is named twice"),
    ):
        with pytest.raises(UserError, match=says):
            registry.names(text)


@pytest.mark.parametrize("name", registry.LOGGERS)
def test_a_missing_package_is_named_with_what_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda package: registry.ABSENT)
    package = registry.LOGGERS[name][1][0]
    with pytest.raises(UserError) as refused:
        registry.names(name)
    assert str(refused.value) == f"--log {name} needs the package {package}: pip install 'lorebench[{name}]'"


# ----------------------------------------------------------------------------------- failures
class Fails:
    """A logger that fails as often as it is told to, at what it is told to."""

    def __init__(self, at: str, times: int) -> None:
        self.at, self.times, self.calls = at, times, list[Any]()

    def _do(self, name: str, *call: Any) -> None:
        self.calls.append((name, *call))
        if name == self.at and self.times:
            self.times -= 1
            raise OSError(28, "No space left on device")

    def start(self, about: About) -> None:
        self._do("start", about.key)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._do("log", dict(values), step)

    def end(self, status: str) -> None:
        self._do("end", status)


def served(
    monkeypatch: pytest.MonkeyPatch, logger: Fails, *messages: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    said: list[Mapping[str, Any]] = []
    monkeypatch.setattr(server, "made", lambda names: {"fake": logger})
    assert server.serve(["fake"], map(json.dumps, messages), said.append) == 0
    return said


def course(folder: Path, *steps: int) -> list[Mapping[str, Any]]:
    logged = ({"log": {"x": 1.0}, "step": step} for step in steps)
    return [{"begin": about(folder).plain()}, *logged, {"end": "ok"}]


def test_a_failure_is_one_warning_a_run_and_the_logger_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Fails("log", 2)
    said = served(monkeypatch, logger, *course(tmp_path, 1, 2, 3))
    warning = "--log fake: [Errno 28] No space left on device; the run goes on, and so does it"
    assert said == [{"ready": True}, {"warning": warning}]
    assert [call[0] for call in logger.calls] == ["start", "log", "log", "log", "end"]


def test_a_log_that_could_not_begin_begins_at_a_later_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Fails("start", 2)
    said = served(monkeypatch, logger, *course(tmp_path, 1, 2))
    assert len(said) == 2
    assert [call[0] for call in logger.calls] == ["start", "start", "start", "log", "end"]


def test_where_the_parent_is_gone_the_log_ends_as_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Fails("", 0)
    served(monkeypatch, logger, *course(tmp_path, 1)[:2])
    assert logger.calls[-1] == ("end", "interrupted")


# ----------------------------------------------------------------------------------- a process of their own
@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_up(tmp_path, monkeypatch, "")
    return tmp_path


def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    for name, value in fake_trackio.installed(folder, way).items():
        monkeypatch.setenv(name, value)


def run_through(logs: Logs, folder: Path, record: Record | None) -> None:
    logs.begin(about(folder))
    logs.event({"phase": "load"})
    logs.event(REPORT)
    logs.end(record)


def test_a_run_is_logged_by_another_process_from_begin_to_end(place: Path) -> None:
    warnings: list[str] = []
    with Logs(("trackio",), place / "logs", warnings.append) as logs:
        run_through(logs, place, ended())
        run_through(logs, place, None)
    (began, given), reported, scored, finished, *second = fake_trackio.calls(place)
    assert (began, given["group"], given["resume"]) == ("init", "small", "allow")
    assert given["name"] == "full seed 0 0123456789abcdef"
    assert reported == ["log", of_event(REPORT), 40]
    assert scored == ["log", of_record(ended()), 40]
    assert [finished, *[call[0] for call in second]] == [["finish"], "init", "log", "finish"]
    assert warnings == []
    assert "a library talks" in (place / "logs" / "log.txt").read_text()


def test_without_names_nothing_is_started_or_written(tmp_path: Path) -> None:
    with Logs((), tmp_path / "logs", pytest.fail) as logs:
        run_through(logs, tmp_path, ended())
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_cannot_be_loaded_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(tmp_path, monkeypatch, "broken")
    warnings: list[str] = []
    with (
        pytest.raises(UserError, match=r"--log trackio: its package cannot be loaded: half installed"),
        Logs(("trackio",), tmp_path / "logs", warnings.append),
    ):
        pytest.fail("it began")
    assert warnings == []


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(tmp_path, monkeypatch, "fails")
    warnings: list[str] = []
    with Logs(("trackio",), tmp_path / "logs", warnings.append) as logs:
        run_through(logs, tmp_path, ended())
    (warning,) = warnings
    assert "No space left on device" in warning


def test_a_library_that_hangs_keeps_nobody_waiting_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(tmp_path, monkeypatch, "hangs")
    monkeypatch.setattr(client, "END_S", 0.5)
    warnings: list[str] = []
    with Logs(("trackio",), tmp_path / "logs", warnings.append) as logs:
        began = time.monotonic()
        logs.begin(about(tmp_path))
        for step in range(5000):  # more than the pipe holds
            logs.event({**REPORT, "step": step})
        assert time.monotonic() - began < 20
    assert time.monotonic() - began < 30
    assert warnings == ["--log trackio: stopped before all was sent"]


def test_a_library_that_ends_the_process_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(tmp_path, monkeypatch, "dies")
    warnings: list[str] = []
    with Logs(("trackio",), tmp_path / "logs", warnings.append) as logs:
        run_through(logs, tmp_path, ended())
        end = time.monotonic() + 20
        while not warnings and time.monotonic() < end:
            time.sleep(0.02)
        run_through(logs, tmp_path, ended())
    (warning,) = warnings
    assert warning.startswith("--log has ended, the runs go on without it; see ")
