"""The loggers with the packages that they write to, offline; `nox -s loggers` installs all of them.

What is logged is read by the packages' own readers.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.engine.loggers.logger import About
from harness.engine.loggers.registry import made
from harness.errors import UserError

LOSS = "train/loss_nats"


def about(folder: Path, key: str = "0123456789abcdef", name: str = "full seed 0") -> About:
    config = {"train": {"lr": 1e-3, "steps": 9}, "method": [{"name": "full"}]}
    return About(key, name, "small", "0a-s0-r0", folder, config)


def log(name: str, run: About, values: Mapping[int, float], status: str | None = "ok") -> Any:
    logger = made([name])[name]
    logger.start(run)
    for step, value in values.items():
        logger.log({LOSS: value, "perplexity/heldout": 10 * value}, step)
    if status is not None:
        logger.end(status)
    return logger


# ------------------------------------------------------------------------------------- TensorBoard
def tensorboard_reads(folder: Path) -> dict[int, float]:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (place,) = (folder / "tensorboard").iterdir()
    reader = reading.EventAccumulator(str(place))
    reader.Reload()
    assert sorted(reader.Tags()["scalars"]) == ["perplexity/heldout", LOSS]
    return {event.step: event.value for event in reader.Scalars(LOSS)}


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log("tensorboard", about(tmp_path, name="50 %: full/8 seed 0"), {1: 4.0, 2: 3.0})
    assert tensorboard_reads(tmp_path) == {1: 4.0, 2: 3.0}
    (place,) = (tmp_path / "tensorboard").iterdir()
    assert place.name == "50-full-8-seed-0.0a-s0-r0"
    (file,) = place.iterdir()
    assert os.uname().nodename not in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_tensorboard_goes_on_where_a_killed_attempt_had_logged_more(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log("tensorboard", about(tmp_path), {1: 4.0, 2: 3.0, 3: 2.9}, status=None)
    log("tensorboard", about(tmp_path), {2: 2.5, 4: 2.0})
    assert tensorboard_reads(tmp_path) == {1: 4.0, 2: 2.5, 4: 2.0}


def test_tensorboard_reads_on_after_a_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = pytest.importorskip("tensorboard.summary.writer.record_writer")
    logger = log("tensorboard", about(tmp_path), {1: 4.0}, status=None)
    with monkeypatch.context() as full:

        def half(self: Any, data: bytes) -> None:
            self._writer.write(data[:3])
            raise OSError(28, "No space left on device")

        full.setattr(records.RecordWriter, "write", half)
        with pytest.raises(OSError, match="No space"):
            logger.log({LOSS: 3.0}, 2)
    logger.log({LOSS: 2.0, "perplexity/heldout": 1.0}, 3)
    logger.end("ok")
    assert tensorboard_reads(tmp_path) == {1: 4.0, 3: 2.0}


# ------------------------------------------------------------------------------------- Weights & Biases
def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a small file: a header of 7 bytes, then a checksum, a length and a kind before each."""
    place = 7
    while place < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1, "whole, as each is in a first block"
        yield content[place + 7 : place + 7 + length]
        place += 7 + length


def test_wandb_offline_keeps_what_was_logged_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log("wandb", about(tmp_path), {1: 4.0, 2: 3.0})
    log("wandb", about(tmp_path), {3: 2.0}, status="interrupted")
    ids, losses, text = set(), {}, b""
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        text += (content := file.read_bytes())
        for data in wandb_records(content):
            record = messages.Record.FromString(data)
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.display_name, record.run.run_group))
            if record.HasField("history"):
                items = record.history.item
                found = {item.key or "/".join(item.nested_key): item.value_json for item in items}
                losses[record.history.step.num] = json.loads(found[LOSS])
    assert ids == {("0123456789abcdef", "full seed 0", "small")}
    assert losses == {1: 4.0, 2: 3.0, 3: 2.0}
    for personal in (os.uname().nodename, str(Path.home())):
        assert personal.encode() not in text or len(personal) < 6


def test_wandb_without_a_login_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    nobody = SimpleNamespace(api=SimpleNamespace(api_key=None))
    monkeypatch.setitem(sys.modules, "wandb", nobody)
    with pytest.raises(
        UserError, match=r"--log wandb: nobody is logged in; run `wandb login`, or set WANDB_"
    ):
        made(["wandb"])


# ------------------------------------------------------------------------------------- MLflow
def test_mlflow_has_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    log("mlflow", about(tmp_path), {1: 4.0, 2: 3.0}, status="interrupted")
    log("mlflow", about(tmp_path), {3: 2.0})
    log("mlflow", about(tmp_path, key="fedcba9876543210"), {1: 5.0}, status="error")
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("lorebench/small/live").experiment_id
    runs = {run.data.tags["lorebench.live"]: run for run in client.search_runs([place])}
    whole = runs["0123456789abcdef"]
    assert (len(runs), whole.info.status, whole.info.run_name) == (2, "FINISHED", "full seed 0")
    assert runs["fedcba9876543210"].info.status == "FAILED"
    assert whole.data.params == {"train.lr": "0.001", "train.steps": "9", "method.0.name": "full"}
    history = client.get_metric_history(whole.info.run_id, LOSS)
    assert {metric.step: metric.value for metric in history} == {1: 4.0, 2: 3.0, 3: 2.0}


def test_mlflow_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="--log mlflow: set MLFLOW_TRACKING_URI"):
        made(["mlflow"])


class FakeClient:
    """What the logger uses of MLflow's client, in memory."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: list[Any] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, places: list[str], wanted: str, max_results: int) -> list[Any]:
        assert places == ["0"]
        key = "lorebench.live"
        return [run for run in self.runs if wanted == f"tags.`{key}` = '{run.tags[key]}'"]

    def create_run(self, place: str, tags: dict[str, str], run_name: str) -> Any:
        info = SimpleNamespace(run_id=str(len(self.runs)), status="RUNNING")
        self.runs.append(SimpleNamespace(info=info, tags=tags, metrics=[], params=[]))
        return self.runs[-1]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[int(run_id)].info.status = status

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[int(run_id)].metrics += metrics
        self.runs[int(run_id)].params += params

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[int(run_id)].tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[int(run_id)].info.status = status


def test_mlflow_is_told_each_value_with_its_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a client in place of the package's, so that this is checked wherever the tests run."""
    client, modules = FakeClient(), sys.modules
    entities = SimpleNamespace(Param=lambda *given: given, Metric=lambda *given: given)
    monkeypatch.setitem(modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    monkeypatch.setitem(modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    log("mlflow", about(tmp_path), {1: 4.0}, status="interrupted")
    log("mlflow", about(tmp_path), {2: 3.0}, status="oom")
    (run,) = client.runs
    losses = [(value, step) for name, value, _, step in run.metrics if name == LOSS]
    assert losses == [(4.0, 1), (3.0, 2)]
    assert run.params[0] == ("train.lr", "0.001")
    assert (run.info.status, run.tags["status"]) == ("FAILED", "oom")


class FakeWandb:
    """What the logger uses of wandb."""

    def __init__(self) -> None:
        self.api, self.begun, self.logged = SimpleNamespace(api_key="k"), list[Any](), list[Any]()
        self.summary: dict[str, str] = {}
        self.exit_code: int | None = None

    def Settings(self, **given: Any) -> dict[str, Any]:  # noqa: N802
        return given

    def init(self, **given: Any) -> FakeWandb:
        self.begun.append(given)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values[LOSS]))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb_is_told_one_id_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log("wandb", about(tmp_path), {1: 4.0}, status="interrupted")
    assert (fake.exit_code, fake.summary) == (1, {"status": "interrupted"})
    log("wandb", about(tmp_path), {2: 3.0})
    assert fake.exit_code == 0
    assert [(given["id"], given["resume"]) for given in fake.begun] == [("0123456789abcdef", "allow")] * 2
    assert fake.begun[0]["settings"]["disable_git"] is True
    assert fake.logged == [(1, 4.0), (2, 3.0)]


# ------------------------------------------------------------------------------------- trackio
def test_trackio_has_one_run_for_all_attempts(tmp_path: Path) -> None:
    """In a process of its own, as trackio reads TRACKIO_DIR when it is imported."""
    pytest.importorskip("trackio")
    script = (
        "import json, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from tests.unit.engine.loggers.test_libraries import about, log\n"
        "place = Path(sys.argv[1])\n"
        "log('trackio', about(place), {1: 4.0, 2: 3.0}, status='interrupted')\n"
        "log('trackio', about(place), {3: 2.0})\n"
        "import trackio\n"
        "runs = list(trackio.Api().runs('lorebench'))\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "logs = SQLiteStorage.get_logs('lorebench', runs[0].name)\n"
        "losses = {each['step']: each['train/loss_nats'] for each in logs}\n"
        "print(json.dumps([len(runs), runs[0].name, losses]))\n"
    )
    root = str(Path(__file__).resolve().parents[4])
    variables = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), root], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("[")]
    number, name, losses = json.loads(line)
    assert (number, name) == (1, "full seed 0 0123456789abcdef")
    assert losses == {"1": 4.0, "2": 3.0, "3": 2.0}
