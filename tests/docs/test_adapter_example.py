"""The adapter of docs/methods.md, as printed there: checked, and run outside the project's folder."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.record import Record
from harness.record_index import read_all
from tests.docs.sources import ROOT, block, document
from tests.support import forked

NAME = "query_adapter:QueryAdapter"
SUITE: dict[str, Any] = {
    "suite": "adapters",
    "base": {
        "model": {"source": "shape", "name": "nano"},
        "data": {"source": "random", "seq_len": 16},
        "train": {"stage": "finetune", "steps": 4, "batch": 2},
    },
    "rows": [
        {"label": "alone", "method": {NAME: {"rank": 2}}, "save_weights": True},
        {"label": "stacked", "method": [NAME, {"optim": {"type": "Muon"}}]},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the method as the page names it, and another without its stepper."""
    made = tmp_path_factory.mktemp("adapter")
    code = block("### An adapter with its AdamW", "python")
    (made / "query_adapter.py").write_text(code)
    without = re.sub(r"    def stepper.*?\n\n", "", code, flags=re.DOTALL)
    assert without != code
    (made / "without_stepper.py").write_text(without)
    (made / "adapters.yaml").write_text(yaml.safe_dump(SUITE))
    return made


def lorebench(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOREBENCH_CACHE": str(folder / "cache")}
    command = [*forked.command("harness.cli"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_passes_every_check_of_what_it_has(folder: Path) -> None:
    lines = lorebench(folder, "check", NAME).splitlines()
    left = {line.split(":")[0].removeprefix("not tried ") for line in lines if line.startswith("not tried")}
    assert left == {"state bits", "period"}  # its states are small, and it has no refreshes
    assert lines[-1] == f"{NAME}: 14 ok, 2 not tried"
    assert not any(line.startswith("note: ") for line in lines)


def test_without_a_stepper_the_check_says_that_it_trains_nothing_alone(folder: Path) -> None:
    lines = lorebench(folder, "check", "without_stepper:QueryAdapter").splitlines()
    assert sum(line.startswith("note: it has no stepper, so alone it trains nothing") for line in lines) == 1


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[str, Record]:
    lorebench(folder, "run", "adapters.yaml", "--device=cpu")
    return {record.label: record for record in read_all(next((folder / "runs").glob("*/adapters")))}


@pytest.mark.parametrize("label", ["alone", "stacked"])
def test_it_trains_its_factors_alone_and_in_the_stack_of_the_page(
    records: dict[str, Record], label: str
) -> None:
    record = records[label]
    assert (record.outcome.status, record.outcome.message) == ("ok", "")
    assert record.parameters is not None
    assert {name.rpartition(".")[2] for name in record.parameters.trainable_names} == {"a", "b"}
    assert record.memory is not None
    assert record.memory.train is not None
    assert record.memory.train.optimizer_bytes > 0


def test_the_stack_of_the_page_is_the_one_that_runs() -> None:
    assert f'`["{NAME}", {{optim: {{type: Muon}}}}]`' in document("docs/methods.md")
