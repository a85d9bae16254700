"""A stranger's method: from a file outside this repository, by `module:Class` and by an entry point."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from harness import record, series
from harness.errors import UserError
from harness.plugins import build, find
from harness.record import Record
from harness.registry import available, check_name
from tests.support import forked

ROOT = Path(__file__).resolve().parents[2]
#: All that a stranger writes: a method that trains the norms alone, and one that only halves the head.
SOURCE = '''
from collections.abc import Iterator

import torch
from pydantic import Field

from harness.method import Caps, Method, MethodConfig, StepInfo


class Config(MethodConfig):
    """What the stranger's method is asked for."""

    every: int = Field(2, gt=0)
    """Steps between two refreshes."""


class NormStepper:
    """Plain gradient descent."""

    def __init__(self, model, every):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.every, self.lr, self.steps = every, 0.0, 0

    def set_lr(self, lr):
        self.lr = lr

    @torch.no_grad()
    def step(self):
        for parameter in self.parameters:
            parameter -= self.lr * parameter.grad
        self.steps += 1
        return StepInfo(refreshed=(self.steps - 1) % self.every == 0, ranks={"head": self.steps})

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def state_tensors(self) -> Iterator:
        return iter(())

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Norms(Method):
    """Trains the norms."""

    Config = Config
    source = "nobody, nowhere"

    @property
    def caps(self):
        return Caps(stages=frozenset({"finetune"}), period=self.config.every)

    def prepare(self, model, context):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        context.facts["tokens seen"] = next(context.calibration.batches(1)).ids.shape[1]
        context.warn("a stranger was here")
        return model

    def stepper(self, model, optim):
        return NormStepper(model, self.config.every)


class Halved(Method):
    """Halves the head."""

    def prepare(self, model, context):
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)
        return model
'''
SUITE = {
    "suite": "outside",
    "base": {
        "model": {"source": "shape", "name": "nano"},
        "data": {"source": "random", "seq_len": 16},
        "train": {"stage": "finetune", "steps": 9, "batch": 2},
    },
    "rows": [{"label": "strange", "method": ["halved", {"strangers_method:Norms": {"every": 3}}]}],
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installation leaves it: a module, and what the package says about itself."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "strangers_method.py").write_text(SOURCE)
    about = folder / "strangers_method-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers-method\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[lorebench.methods]\nhalved = strangers_method:Halved\nfull = strangers_method:Halved\n"
    )
    return folder


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package))


@pytest.fixture(scope="module")
def ran(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a stack of both, run by the command line in processes of its own."""
    folder = tmp_path_factory.mktemp("outside")
    suite = folder / "outside.yaml"
    suite.write_text(yaml.safe_dump(SUITE))
    arguments = ["run", str(suite), "--results", str(folder / "runs"), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(package), "LOREBENCH_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*forked.command("harness.cli"), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "runs").glob("*/outside/*.json")
    return record.read(found)


def test_a_method_from_outside_runs_to_the_end(ran: Record) -> None:
    assert (ran.outcome.status, ran.outcome.message) == ("ok", "")
    assert ran.training is not None
    assert len(series.losses(ran)) == ran.training.steps == 9


def test_its_options_are_complete_in_the_record(ran: Record) -> None:
    assert ran.config["method"] == [
        {"name": "halved", "options": {}},
        {"name": "strangers_method:Norms", "options": {"every": 3}},
    ]


def test_what_it_says_about_itself_is_in_the_record(ran: Record) -> None:
    assert ran.parameters is not None
    assert ran.parameters.facts == {"halved": {}, "strangers_method:Norms": {"tokens seen": 16}}
    assert all("norm" in name for name in ran.parameters.trainable_names)
    assert ran.parameters.trainable == 5 * 32
    assert ran.parameters.ranks == {"head": 9}
    assert "a stranger was here" in ran.warnings


def test_its_stepper_is_measured_like_any_other(ran: Record) -> None:
    assert ran.memory is not None
    assert ran.memory.train is not None
    assert ran.time is not None
    assert ran.memory.train.weights_trainable_bytes == ran.memory.train.gradients_bytes == 5 * 32 * 4
    assert ran.memory.train.optimizer_bytes == 0
    assert ran.memory.train.refreshes_in_window == 1
    assert series.read(ran).refresh_step == [None] * 5 + [False, True, False, False]
    assert ran.time.tokens_per_s is not None


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_a_name() -> None:
    assert available()["halved"] == "strangers_method:Halved"
    assert find("halved").__module__ == "strangers_method"
    with pytest.raises(UserError, match="did you mean 'halved'"):
        check_name("halve")


@pytest.mark.usefixtures("installed")
def test_an_installed_package_cannot_take_the_name_of_a_method_that_ships() -> None:
    assert available()["full"] == "methods.full:Full"


@pytest.mark.usefixtures("installed")
def test_wrong_options_of_a_method_from_outside_are_refused_by_its_own_rules() -> None:
    with pytest.raises(UserError, match="every: give a number above 0, not 0"):
        build("strangers_method:Norms", {"every": 0})


def test_without_the_package_its_module_is_missed_in_one_line() -> None:
    with pytest.raises(UserError, match="cannot import module 'another_strangers_method'"):
        find("another_strangers_method:Norms")
