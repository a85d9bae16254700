"""The upload against a real MLflow server on this machine, by MLflow's own client.

`nox -s mlflow` gives client and server an environment each, since the server's pins are not ours:
LOREBENCH_MLFLOW_SERVER is the server's Python, the client needs mlflow-skinny alone.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from tests.support.gate_records import environment, made, put
from tests.support.history_records import scored

mlflow = pytest.importorskip("mlflow")
SERVER = os.environ.get("LOREBENCH_MLFLOW_SERVER")
STARTS_S = 240

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.skipif(SERVER is None, reason="LOREBENCH_MLFLOW_SERVER names no Python that has mlflow"),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server with a store of its own; it ends with the tests."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/store.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    command = [str(SERVER), "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
    settings = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait(address, server, folder / "log")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Three runs of two commits, one of which failed."""
    for number, parts in enumerate(({}, {"seed": 1}, {"outcome": {"status": "oom", "phase": "train"}})):
        loss = [3.0 - step / 1000 for step in range(1500)]
        given: dict[str, Any] = {
            "time": {"tokens_per_s": 1000.5, "wall_s": 60.0},
            "training": {"steps": 1500, "tokens": 10, "loss": loss, "lr": [0.1] * 1500},
            "environment": environment(git_sha="ab"[number // 2] * 40),
            "quality": scored(3.0),
            "started_at": f"2026-11-2{number}T10:00:00+00:00",
        }
        put(tmp_path / f"{number}", made("row: 50 %", **{**given, **parts}))
    return tmp_path


def upload(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path, *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["lorebench", "history", "demo", "--results", str(records), *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_runs_are_uploaded_once_with_figures_parameters_and_tags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path, uri: str
) -> None:
    first = upload(monkeypatch, capsys, records, "--mlflow", uri)
    again = upload(monkeypatch, capsys, records, "--mlflow", uri)
    assert first == (0, "mlflow: 3 runs uploaded to experiment 'lorebench/demo', 0 were there already\n")
    assert again == (0, "mlflow: 0 runs uploaded to experiment 'lorebench/demo', 3 were there already\n")
    client = mlflow.MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name("lorebench/demo").experiment_id
    runs = client.search_runs([place], order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "FAILED"]
    run = runs[0]
    assert run.data.metrics["optimizer_bytes"] == 800 << 20
    assert run.data.metrics["tokens_per_s"] == 1000.5
    assert run.data.metrics["perplexity_text"] == 3.0
    assert run.data.params["train.lr"] == "0.001"
    assert (run.data.tags["commit"], run.data.tags["machine"]) == ("a" * 40, "a CPU")
    assert run.info.end_time - run.info.start_time == 60_000
    assert len(client.get_metric_history(run.info.run_id, "train_loss_nats")) == 1500


def test_what_an_upload_left_unfinished_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path, uri: str
) -> None:
    arguments = ("--mlflow", uri, "--experiment", "broken off")
    upload(monkeypatch, capsys, records, *arguments)
    client = mlflow.MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name("broken off").experiment_id
    client.update_run(client.search_runs([place])[0].info.run_id, status="RUNNING")
    code, said = upload(monkeypatch, capsys, records, *arguments)
    assert (code, said.split(" to ")[0]) == (0, "mlflow: 1 run uploaded")
    assert len(client.search_runs([place])) == 3


def test_a_server_that_is_not_there_is_one_line_within_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path
) -> None:
    start = time.monotonic()
    code, said = upload(monkeypatch, capsys, records, "--mlflow", f"http://127.0.0.1:{free_port()}")
    assert (code, said.count("\n")) == (2, 1)
    assert "Connection refused" in said
    assert time.monotonic() - start < 30


def test_an_address_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path
) -> None:
    for given in ("gopher://nowhere", "http://[", ""):
        code, said = upload(monkeypatch, capsys, records, "--mlflow", given)
        assert (code, said.count("\n")) == (2, 1), said


class Refusing(http.server.BaseHTTPRequestHandler):
    """Some other web server, or one that wants a password."""

    def answer(self) -> None:
        body = json.dumps({"error_code": "PERMISSION_DENIED", "message": "not for you"}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_refusal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: Path
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code, said = upload(
            monkeypatch, capsys, records, "--mlflow", f"http://127.0.0.1:{server.server_port}"
        )
        server.shutdown()
    assert (code, said.count("\n")) == (2, 1)
    assert "not for you" in said
