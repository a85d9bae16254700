"""Records as runs of MLflow, without MLflow: the mapping, and that nothing is sent twice."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import pytest

from harness.errors import UserError
from harness.tables.history import mlflow
from harness.tables.history.loading import Collection, Found, collect
from harness.tables.history.mlflow import Metric, Run, mapped, send
from tests.support.gate_records import environment, made, put
from tests.support.history_records import scored
from tests.support.mutations import put_mutated


@dataclass
class Fake:
    """A server that keeps what it is sent."""

    runs: dict[str, list[Run]] = field(default_factory=dict)

    def experiment(self, name: str) -> str:
        self.runs.setdefault(name, [])
        return name

    def uploaded(self, experiment: str) -> set[str]:
        return {run.key for run in self.runs[experiment]}

    def send(self, experiment: str, run: Run) -> None:
        self.runs[experiment].append(run)


def found(seed: int = 3, **parts: object) -> Found:
    speed = {"tokens_per_s": 1000.5, "wall_s": 60.0}
    training = {"steps": 2, "tokens": 10, "loss": [3.0, float("inf"), 2.0], "lr": [0.1, 0.1, 0.1]}
    here = environment(git_sha="a" * 40, git_dirty_sha256="b" * 64)
    given = {"time": speed, "training": training, "environment": here, "quality": scored(3.0), **parts}
    return Found(made("row", seed, 1, **given), "runs/x.json")


def test_figures_are_metrics_with_their_units_and_losses_have_steps() -> None:
    run = mapped(found())
    metrics = {metric.key: metric.value for metric in run.metrics if not metric.step}
    assert metrics["optimizer_bytes"] == 800 << 20
    assert metrics["tokens_per_s"] == 1000.5
    assert metrics["wall_s"] == 60.0
    assert metrics["perplexity_text"] == 3.0
    losses = [metric for metric in run.metrics if metric.step]
    assert losses == [Metric("train_loss_nats", 3.0, 1), Metric("train_loss_nats", 2.0, 3)]


def test_the_config_is_parameters_and_commit_machine_and_run_are_tags() -> None:
    run = mapped(found())
    assert run.params["train.lr"] == "0.001"
    assert run.params["method.0.name"] == "row"
    assert run.params["method.0.options.rank"] == "8"
    assert (run.params["seed"], run.params["repeat"]) == ("3", "1")
    assert run.tags["commit"] == run.tags["mlflow.source.git.commit"] == "a" * 40
    assert run.tags["dirty"] == "true"
    assert run.tags["machine"] == "a CPU"
    assert run.tags["run_id"].endswith("-s3-r1")
    assert (run.status, run.end_ms - run.start_ms) == ("FINISHED", 60_000)


def test_a_run_that_failed_is_uploaded_as_failed_without_figures() -> None:
    run = mapped(found(outcome={"status": "oom", "phase": "train"}, training=None))
    assert (run.status, run.metrics, run.tags["status"]) == ("FAILED", (), "oom")


def test_a_second_upload_adds_nothing_and_a_new_run_alone_is_sent() -> None:
    server = Fake()
    both = [found(), found(outcome={"status": "oom"}, started_at="2026-11-22T10:00:00+00:00")]
    assert send(server, both[:1], "demo") == (1, 0, [])
    assert send(server, both[:1], "demo") == (0, 1, [])
    assert send(server, both, "demo") == (1, 1, [])
    assert len(server.runs["demo"]) == 2


def test_an_earlier_run_of_the_same_id_is_another_run() -> None:
    assert mapped(found()).key != mapped(found(started_at="2026-11-22T10:00:00+00:00")).key


def test_runs_of_two_commits_that_start_in_one_second_are_two() -> None:
    stands = (
        {"git_sha": "a" * 40},
        {"git_sha": "b" * 40},
        {"git_sha": "b" * 40, "git_dirty_sha256": "c" * 64},
    )
    server = Fake()
    assert send(server, [found(environment=environment(**stand)) for stand in stands], "demo") == (3, 0, [])
    assert len({run.key for run in server.runs["demo"]}) == 3


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'lorebench\[mlflow\]'"):
        mlflow.upload(Collection("demo", [found()]), "http://127.0.0.1:1", "demo")


@pytest.mark.parametrize(
    ("uri", "secrets"),
    [
        ("http://me:hunter22@127.0.0.1:1", ("me:", "hunter22")),
        ("http://me:hun@er/22@127.0.0.1:1", ("me:", "hun@er", "er/22")),
        ("http://me:hunter%2F22@127.0.0.1:1/x", ("me:", "hunter%2F22", "hunter/22")),
        ("http://hunter22@127.0.0.1:1", ("hunter22",)),
        ("http://127.0.0.1:1?token=hunter22", ("hunter22",)),
        ("postgresql://me:hunter22@127.0.0.1:1/db", ("me:", "hunter22")),
    ],
)
@pytest.mark.parametrize("at", ["connect", "send"])
def test_a_password_in_the_address_is_in_no_message(
    uri: str, secrets: tuple[str, ...], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RefusedError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        login = uri.partition("://")[2].rpartition("@")[0]
        raise RefusedError(f"request to {uri} failed: {unquote(login)}: not allowed for {login}")

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            if at == "connect":
                refuse()

        get_experiment_by_name = staticmethod(refuse)

    modules = {
        "mlflow": SimpleNamespace(MlflowClient=Client),
        "mlflow.exceptions": SimpleNamespace(MlflowException=RefusedError),
        "mlflow.entities": SimpleNamespace(),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, cast(Any, module))
    with pytest.raises(UserError) as error:
        mlflow.upload(Collection("demo", [found()]), uri, "demo")
    said = str(error.value)
    assert "--mlflow" in said
    assert "://127.0.0.1:1" in said
    assert "not allowed" in said
    assert not [secret for secret in secrets if secret in said], said


def test_mutated_records_have_names_and_values_that_mlflow_takes(tmp_path: Path) -> None:
    dice = random.Random(2)
    put(tmp_path, made("sound"))
    for number in range(300):
        put_mutated(tmp_path, found(number, started_at=None).record, dice)
    runs = [mapped(each) for each in collect([tmp_path], "demo").found]
    assert len(runs) > 10
    for run in runs:
        assert 0 <= run.start_ms <= run.end_ms
        assert all(key and len(key) <= 250 for key in (*run.params, *run.tags, *(m.key for m in run.metrics)))
        assert all(
            len(value) <= 500 and value.encode() is not None for value in (*run.params.values(), run.name)
        )
