"""Files in the current folder with the names of modules are not run in their place; plug-ins are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: Names of the library, of packages that are installed, and of ours.
NAMES = (
    *("queue", "random", "socket", "typer", "yaml", "numpy", "torch"),
    *("transformers/__init__", "harness", "methods/__init__", "benchmarks/__init__", "tests/__init__"),
)
#: Names that Python itself looks up while it starts, so that only a safe path keeps them out.
EARLY = ("types", "re", "pathlib", "runpy", "functools")
PLUGIN = """
'''Nothing moves.'''
from harness.method import Method, StepInfo

class Still(Method):
    def stepper(self, model, optim):
        return Stepper(model)

class Stepper:
    def __init__(self, model):
        self.model = model
    def set_lr(self, lr): pass
    def step(self): return StepInfo()
    def zero_grad(self): self.model.zero_grad()
    def state_tensors(self): return iter(())
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
"""
SUITE = """
suite: here
base:
  model: {source: shape, name: nano}
  data: {source: random, seq_len: 16}
  train: {stage: finetune, steps: 2, batch: 2}
rows:
  - {label: mine, method: "mine:Still"}
  - {label: theirs, method: full}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A current folder in which every file leaves a mark when it is run."""
    for name in NAMES:
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(tmp_path / 'marks')!r}, 'a').write({name!r} + ' ')\n")
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "here.yaml").write_text(SUITE)
    return tmp_path


def marks(folder: Path) -> str:
    file = folder / "marks"
    return file.read_text() if file.exists() else ""


def call(
    folder: Path, *arguments: str, path: str = str(ROOT), options: tuple[str, ...] = ("-P",)
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "LOREBENCH_CACHE": str(folder / "cache")}
    command = [sys.executable, *options, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("path", [str(ROOT), f"{ROOT}::."], ids=["", "empty entry and dot"])
def test_a_run_takes_nothing_from_the_current_folder_but_its_plugin(folder: Path, path: str) -> None:
    if path == str(ROOT):
        for name in EARLY:
            (folder / f"{name}.py").write_text((folder / "queue.py").read_text().replace("queue", name))
    said = call(
        folder, "-m", "harness.cli", "run", "here.yaml", "--device=cpu", "--only=label=mine", path=path
    )
    assert (said.returncode, marks(folder)) == (0, ""), said.stderr
    assert "mine" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (("mine:Still",), "mine:Still: Nothing moves."),
        (("optim", "--set", "type=optimizer.py:Mine"), "optim: Train what has"),
    ],
    ids=["method", "optimizer"],
)
def test_a_command_that_starts_no_worker_finds_a_plugin_in_the_current_folder(
    folder: Path, arguments: tuple[str, ...], first: str
) -> None:
    (folder / "optimizer.py").write_text("from torch.optim import SGD\n\nclass Mine(SGD):\n    pass\n")
    said = call(folder, "-m", "harness.cli", "methods", *arguments)
    assert (said.returncode, marks(folder)) == (0, ""), said.stderr
    assert said.stdout.startswith(first)


def test_without_any_care_of_the_caller_only_our_own_name_can_be_taken(folder: Path) -> None:
    """`python -m harness.cli` looks for `harness` before anything of ours is run."""
    (folder / "harness.py").unlink()
    said = call(folder, "-m", "harness.cli", "run", "missing.yaml", options=())
    assert (said.returncode, marks(folder)) == (2, ""), said.stderr


@pytest.mark.parametrize("name", ["queue", "methods", "torch"])
def test_a_plugin_with_the_name_of_another_module_is_one_line(folder: Path, name: str) -> None:
    place = folder / (f"{name}/__init__.py" if (folder / name).is_dir() else f"{name}.py")
    place.write_text(PLUGIN)
    said = call(
        folder, "-m", "harness.cli", "run", "here.yaml", f"--set=method={name}:Still", "--set=label=mine"
    )
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1, said.stderr
    assert f"{place} is hidden by " in said.stderr
    assert "rename it" in said.stderr
    assert marks(folder) == ""
