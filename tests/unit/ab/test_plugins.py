"""`lorebench ab` in the repository of a plug-in compares its revisions, or says in one line why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import imports
from harness.ab import checkouts, plugins
from harness.config import Run
from harness.errors import UserError
from harness.files import ROOT

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
PLUGIN = """
import torch
from harness.method import Method, StepInfo

class Heavy(Method):
    def stepper(self, model, optim):
        return Stepper([p for p in model.parameters() if p.requires_grad])

class Stepper:
    def __init__(self, parameters):
        self.parameters, self.kept = parameters, torch.zeros(SIZE)
    def set_lr(self, lr): pass
    def step(self): return StepInfo()
    def zero_grad(self):
        for p in self.parameters:
            p.grad = None
    def state_tensors(self): yield "kept", self.kept
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
"""
SUITE = """
suite: mine
baseline: heavy
base:
  model: {source: shape, name: nano}
  data: {source: random, seq_len: 16}
  train: {stage: finetune, steps: 6, batch: 2}
rows:
  - {label: heavy, method: "heavy_plugin:Heavy"}
"""


def git(root: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A plug-in in a folder of its repository; its second commit keeps 1,000,000 bytes more."""
    root = tmp_path / "theirs"
    folder = root / "plugins"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(SUITE)
    git(root, "init", "-q", "-b", "main")
    for size in ("250_000", "500_000"):
        (folder / "heavy_plugin.py").write_text(PLUGIN.replace("SIZE", size))
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", size)
    return root


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LOREBENCH_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-P", "-m", "harness.cli", "ab", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_revisions_of_the_plugin_are_compared_and_a_second_call_does_nothing(
    repository: Path,
) -> None:
    given = ("HEAD~1", "HEAD", "mine.yaml", "--repeats=1", "--device=cpu")
    said = call(repository / "plugins", *given)
    assert said.returncode == 1, said.stderr
    assert "regression" in said.stdout
    assert "1 run, 0 already finished" in said.stderr
    assert "[1/1] a and b: heavy seed 0: started" in said.stderr
    again = call(repository / "plugins", *given)
    assert (again.returncode, again.stdout) == (1, said.stdout)
    assert again.stderr.splitlines()[-1] == "1 run, 1 already finished"


def run_of(method: Any) -> Run:
    return Run.model_validate({"method": method})


def test_a_repository_without_a_method_of_a_row_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    for method in ("full", "heavy_plugin:Heavy"):  # which is in another folder than this one
        with pytest.raises(UserError, match=r"theirs is not lorebench, and no row has a method module:Class"):
            plugins.check(repository, [run_of(method)])
    monkeypatch.chdir(repository / "plugins")
    plugins.check(repository, [run_of("full"), run_of("heavy_plugin:Heavy")])
    plugins.check(repository, [run_of({"optim": {"type": "heavy_plugin.py:Heavy"}})])


def test_a_plugin_that_is_found_in_its_working_tree_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository / "plugins")
    monkeypatch.setenv("PYTHONPATH", str(repository / "plugins"))
    with pytest.raises(UserError, match=r"found at .*heavy_plugin\.py, so both revisions would run"):
        plugins.check(repository, [run_of("heavy_plugin:Heavy")])


def test_a_revision_runs_with_the_plugins_of_its_checkout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository / "plugins")
    made = plugins.placed(checkouts.checkout(repository, "HEAD~1", tmp_path / "revisions"), repository)
    assert made.plugins == made.tree / "plugins"
    assert "250_000" in (made.plugins / "heavy_plugin.py").read_text()
    assert made.environment(tmp_path)[imports.PLUGINS] == str(made.plugins)
    assert made.code == ROOT
    git(repository, "rm", "-q", "-r", "--cached", "plugins")
    git(repository, "commit", "-q", "-m", "gone", "--allow-empty")
    with pytest.raises(UserError, match="HEAD: this revision has no folder plugins"):
        plugins.placed(checkouts.checkout(repository, "HEAD", tmp_path / "revisions"), repository)
