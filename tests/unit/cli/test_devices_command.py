"""`lorebench devices`: the list, and a calibration by a stand-in for the worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main as cli
from harness.devices import FOLDER, names, profile
from harness.engine.process import child

Said = tuple[int, str, str]


@pytest.fixture
def call(monkeypatch: Any, capsys: Any, tmp_path: Path) -> Callable[..., Said]:
    monkeypatch.chdir(tmp_path)

    def lorebench(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["lorebench", "devices", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return lorebench


def answering(monkeypatch: Any, folder: Path, *events: Any) -> None:
    """Let a worker answer every request with these events."""
    script = folder / "worker.py"
    lines = "\n".join(json.dumps(event) for event in events)
    script.write_text(f"import sys\nsys.stdin.readline()\nprint({lines!r})\n")
    monkeypatch.setattr(child, "WORKER", (sys.executable, str(script)))


def test_the_list_names_every_profile(call: Callable[..., Said]) -> None:
    code, out, _ = call()
    assert code == 0
    assert all(name in out for name in names())


def test_a_calibration_is_written_and_can_be_used(
    call: Callable[..., Said], monkeypatch: Any, tmp_path: Path
) -> None:
    content = yaml.safe_load((FOLDER / "h100.yaml").read_text())
    answering(monkeypatch, tmp_path, {"measuring": "memory"}, {"machine": "cpu-2t", "profile": content})
    code, out, err = call("--calibrate")
    assert code == 0, err
    assert "measuring memory" in err
    assert "lorebench plan SUITE --on cpu-2t.yaml" in out
    assert profile("cpu-2t.yaml") == profile("h100")
    call("--calibrate", "--out", "mine.yaml")
    assert profile("mine.yaml") == profile("h100")


def test_what_a_worker_refuses_is_one_line(
    call: Callable[..., Said], monkeypatch: Any, tmp_path: Path
) -> None:
    answering(monkeypatch, tmp_path, {"error": "no GPU is visible"})
    code, out, err = call("--calibrate", "--device", "cuda")
    assert (code, out) == (2, "")
    assert err == "lorebench: no GPU is visible\n"
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "mine.yaml"), "--out goes with --calibrate"),
        (("--calibrate", "--out", "mine.json"), "name a file that ends in .yaml or .yml"),
        (("--calibrate", "--out", "nowhere/mine.yaml"), "folder that can be written to"),
    ],
)
def test_a_mistake_is_one_line(call: Callable[..., Said], arguments: tuple[str, ...], said: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
