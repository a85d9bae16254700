"""Options that several commands share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.options import Selection, use_threads
from harness.errors import UserError

SUITE = """
suite: small
baseline: full
{}
base: {{model: {{source: embedded}}, train: {{steps: 2}}}}
rows:
  - {{label: full, method: full}}
"""


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is restored in the end, and absent now."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    del os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.format("threads: 3"), encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("variable")
@pytest.mark.parametrize("empty", [False, True])
def test_runs_compute_on_the_threads_of_their_suite(suite: str, empty: bool) -> None:
    if empty:
        os.environ["OMP_NUM_THREADS"] = ""
    use_threads(Selection(suite).load())
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_variable_wins_over_the_threads_of_a_suite(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    use_threads(Selection(suite).load())
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.usefixtures("variable")
@pytest.mark.parametrize("model", ["JackFram/llama-68m", None])
def test_another_model_computes_on_all_threads(suite: str, model: str | None) -> None:
    """It may be of any size, and what the suite says is about its own; another text changes nothing."""
    use_threads(Selection(suite, model=model, settings=["data.world=a"]).load())
    assert os.environ.get("OMP_NUM_THREADS") == (None if model else "3")


@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_command_that_trains_uses_the_threads_of_its_suite(command: str, tmp_path: Path) -> None:
    """The folder of the records names the threads; unasked there would be one for each core."""
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.format("threads: 1"), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    asked = [sys.executable, "-m", "harness.cli", command, str(path), "--dry-run", "--results", str(tmp_path)]
    said = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
    assert "cpu-1t" in said


def test_no_threads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text(SUITE.format("threads: 0"), encoding="utf-8")
    with pytest.raises(UserError, match=r"none\.yaml:4: threads"):
        Selection(str(path)).load()
