"""The optimizer of docs/methods.md: code and suite as printed there, run outside the project's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.record import Record
from harness.record_index import read_all
from tests.docs.sources import ROOT, block

SMALL = (
    "--set=model={source: shape, name: nano}",
    "--set=data={source: random, seq_len: 16}",
    "--set=train.steps=8",
    "--set=evaluate=!replace {}",
    "--only=label=sign",
    "--seed=5",
)


HEADING = "### An optimizer with its suite"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    folder = tmp_path
    suite = yaml.safe_load(block(HEADING, "yaml"))
    targets = [row["method"] for row in suite["rows"] if ":" in row["method"]]
    (folder / f"{targets[0].partition(':')[0]}.py").write_text(block(HEADING, "python"))
    (folder / "mine.yaml").write_text(block(HEADING, "yaml"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOREBENCH_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "harness.cli", "run", "mine.yaml", "--device=cpu", *SMALL]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sign" in done.stdout
    [found] = read_all(next((folder / "runs").glob("*/mine")))
    return found


def test_it_has_a_row_of_its_own_and_keeps_no_optimizer_state_as_the_page_says(record: Record) -> None:
    assert (record.outcome.status, record.label) == ("ok", "sign")
    assert record.training is not None
    assert record.training.steps == 8
    assert record.memory is not None
    assert record.memory.train is not None
    assert record.memory.train.optimizer_bytes == 0
    assert record.memory.train.gradients_bytes == record.memory.train.weights_trainable_bytes


def test_the_whole_example_is_about_as_long_as_promised() -> None:
    """One file, read at a glance: no more lines of code than fit beside the text about them."""
    assert len([line for line in block(HEADING, "python").splitlines() if line.strip()]) <= 30
