# ruff: noqa: E501  (a case is a line of a table)
"""Wrong plug-ins, each in its own way: one line names the mistake, with the author's file and line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import imports
from harness.config import OptimConfig, Run
from harness.engine.contract import checks, members
from harness.engine.contract.server import ALL, answer, tried
from harness.engine.contract.subject import Descent, Subject
from harness.engine.forecast.count import count
from harness.engine.run.checks import resolve
from harness.engine.run.outcome import classify
from harness.errors import MethodError, UserError
from harness.plugins import build, place
from tests.support import forked
from tests.support.tiny import tiny_llama

ROOT = Path(__file__).resolve().parents[2]
#: A right plug-in: descent with momentum. Each wrong one replaces a part of it.
RIGHT = '''
import random
import sys

import numpy as np
import torch
from pydantic import Field

from harness.method import Caps, Method, MethodConfig, StepInfo


class Config(MethodConfig):
    """Options."""

    beta: float = Field(0.9, ge=0, lt=1)
    """Decay of the momentum."""


class Mine(Method):
    """Descent with momentum."""

    Config = Config
    source = "nobody, 2026"

    @property
    def caps(self):
        return Caps()

    def prepare(self, model, context):
        return model

    def stepper(self, model, optim):
        return Momentum([p for p in model.parameters() if p.requires_grad], self.config.beta, optim)

    def export(self, model):
        return model


class Momentum:
    def __init__(self, parameters, beta, optim):
        self.parameters, self.beta, self.optim, self.lr = parameters, beta, optim, 0.0
        self.moments = [torch.zeros_like(p) for p in parameters]

    def set_lr(self, lr):
        self.lr = lr

    @torch.no_grad()
    def step(self):
        if self.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.optim.clip)
        for p, m in zip(self.parameters, self.moments):
            m.mul_(self.beta).add_(p.grad)
            p.sub_(self.lr * (m + self.optim.weight_decay * p))
        return StepInfo()

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def state_tensors(self):
        for i, m in enumerate(self.moments):
            yield f"moment {i}", m

    def state_dict(self):
        return {"moments": self.moments}

    def load_state_dict(self, state):
        for m, saved in zip(self.moments, state["moments"]):
            m.copy_(saved)
'''
CAPS = "        return Caps()\n"
STEPPER = (
    "        return Momentum([p for p in model.parameters() if p.requires_grad], self.config.beta, optim)\n"
)
STEP_END = "        return StepInfo()\n"
STATES = '        for i, m in enumerate(self.moments):\n            yield f"moment {i}", m\n'
PREPARE = "    def prepare(self, model, context):\n        return model\n"
#: Found before anything runs: the part that is replaced, by what, and what is said.
AT_RESOLVE = {
    "syntax error": ("import random\n", "import random (\n", r"SyntaxError: .*\(PLUGIN:2\)"),
    "import of what is not there": ("import random\n", "import nowhere_at_all\n", r"ModuleNotFoundError.*PLUGIN:2"),
    "import of a name that is not there": (
        "import Caps, ",
        "import Caps, Nothing, ",
        r"ImportError: cannot import name 'Nothing'.*PLUGIN:9",
    ),
    "exit at import": ("import random\n", "import sys; sys.exit(3)\n", r"SystemExit: 3 \(PLUGIN:2\)"),
    "error at import": ("import random\n", "1 / 0\n", r"ZeroDivisionError: division by zero \(PLUGIN:2\)"),
    "no such class": ("class Mine(", "class Mein(", r"PLUGIN has no class 'Mine'; did you mean 'Mein'"),
    "no method at all": ("class Mine(Method)", "class Mein", "has no subclass of harness.method.Method"),
    "class is no Method": ("class Mine(Method)", "class Mine", r"not a subclass of .*Method \(PLUGIN:19\)"),
    "an instance": ("class Momentum:", "Mine = Mine(Config())\nclass Momentum:", "is not a subclass of"),
    "Config is a dict": ("    Config = Config\n", "    Config = {}\n", r"Config is a dict, not a .*MethodConfig"),
    "Config of pydantic": (
        "class Config(MethodConfig)",
        "import pydantic\nclass Config(pydantic.BaseModel)",
        r"Config is the class Config, not a subclass of harness.method.MethodConfig \(PLUGIN:20\)",
    ),
    "annotation that cannot be resolved": ("beta: float", "beta: 'Nowhere'", "Config: .*Nowhere.*PLUGIN:12"),
    "default that its type refuses": ("Field(0.9,", "Field('much',", r"beta: .*not the text 'much'.*PLUGIN:12"),
    "default outside of its bounds": ("Field(0.9,", "Field(3.0,", r"beta: .*below 1, not 3.*default"),
    "default that fails": (
        "Field(0.9,",
        "Field(default_factory=lambda: 1 / 0,",
        r"Config: ZeroDivisionError.*PLUGIN:15",
    ),
    "default that JSON cannot hold": ("beta: float = Field(0.9, ge=0, lt=1)", "beta: object = object()", "JSON"),
    "own __init__ without config": (
        PREPARE,
        PREPARE + "    def __init__(self, config):\n        self.x = 1\n",
        r"call super\(\)\.__init__\(config\).*PLUGIN:31",
    ),
    "own __init__ of other arguments": (
        PREPARE,
        PREPARE + "    def __init__(self, config, more):\n        super().__init__(config)\n",
        r"TypeError: .*'more'",
    ),
    "prepare of one argument": ("prepare(self, model, context)", "prepare(self, model)", r"prepare is called as "
                                r"prepare\(model, context\): too many positional arguments \(PLUGIN:29\)"),
    "stepper of three arguments": ("stepper(self, model, optim)", "stepper(self, model, optim, x)", "'x'.*PLUGIN"),
    "export is a value": ("    def export(self, model):\n        return model\n", "    export = 3\n",
                          r"export is 3, not the function export\(model\)"),
    "caps without property": ("    @property\n", "", r"caps is a method, not a Caps; write @property above it \(PLUGIN:25"),
    "caps is a dict": (CAPS, "        return {}\n", r"caps is a dict, not a Caps \(PLUGIN:25\)"),
    "caps fail": (CAPS, "        return Caps(nothing=1)\n", r"caps: TypeError: .*'nothing' \(PLUGIN:27\)"),
    "caps as attribute of a wrong type": (
        f"    @property\n    def caps(self):\n{CAPS}",
        "    caps = ['finetune']\n",
        r"caps is a list, not a Caps \(PLUGIN:19\)",
    ),
    "stages is a text": (CAPS, "        return Caps(stages='finetune')\n", "caps.stages is 'finetune', not a set of"),
    "unknown stage": (CAPS, "        return Caps(stages=frozenset({'tune'}))\n", "not a set of pretrain, finetune"),
    "period is no number": (CAPS, "        return Caps(period='often')\n", "caps.period is 'often', not None or"),
    "switch is no switch": (CAPS, "        return Caps(grad_clip=None)\n", "grad_clip is None, not True or False"),
    "another switch": (CAPS, "        return Caps(fixed_length=1)\n", "fixed_length is 1, not True or False"),
    "reason is no text": (CAPS, "        return Caps(no_export=True)\n", "caps.no_export is True, not a text"),
    "config_for fails": (
        PREPARE, PREPARE + "    @classmethod\n    def config_for(cls, options):\n        return options['x']\n",
        r"config_for: KeyError: 'x' \(PLUGIN:33\)"),
    "config_for returns options": (
        PREPARE, PREPARE + "    @classmethod\n    def config_for(cls, options):\n        return options\n",
        r"config_for returned a dict, not a subclass of harness.method.MethodConfig \(PLUGIN:3[12]\)"),
    "libraries is a text": ("    source =", "    libraries = 'numpy'\n    source =", "libraries is 'numpy', not a tuple"),
    "source is missing text": ('source = "nobody, 2026"', "source = None", "source is None, not a text"),
}  # fmt: skip
#: Found where it is used, in a run: a row `error` with this message.
IN_A_RUN = {
    "prepare returns None": (PREPARE, PREPARE.replace("return model", "model.train()"),
                             r"prepare returned None; return the model \(PLUGIN:29\)"),
    "prepare returns a pair": (PREPARE, PREPARE.replace("return model", "return model, 1"), "returned a tuple"),
    "all frozen": (PREPARE, PREPARE.replace("return model", "return model.requires_grad_(False)"),
                   r"all parameters are frozen, so its stepper has nothing to train.*PLUGIN:29"),
    "an optimizer of torch": (STEPPER, "        return torch.optim.SGD(model.parameters(), lr=optim.lr)\n",
                              r"stepper returned a.* SGD, an optimizer of torch; wrap it .*PLUGIN:32"),
    "stepper is a class": (STEPPER, "        return Momentum\n", "called as|has no"),
    "step returns None": (STEP_END, "", r"Momentum\.step returned None; return a StepInfo.*PLUGIN:47"),
    "step returns a dict": (STEP_END, "        return {}\n", r"Momentum\.step returned a dict; return a StepInfo"),
    "grad_norm is a float": (STEP_END, "        return StepInfo(grad_norm=1.0)\n", "grad_norm=1.0, not None or a tensor"),
    "ranks is a list": (STEP_END, "        return StepInfo(ranks=[3])\n", "ranks=a list, not None or a mapping"),
    "refreshes is a tensor": (STEP_END, "        return StepInfo(refreshes=torch.ones(1))\n", "refreshes=a Tensor, not"),
    **{
        f"no {member}": (f"    def {member}(self", "    def other(self", rf"Momentum has no {member}\(.*PLUGIN:39")
        for member in members.CALLED
    },
    "step takes a loss": ("def step(self)", "def step(self, loss)", r"step is called as step\(\): .*'loss'"),
    "zero_grad is a value": ("    def zero_grad(self):\n", "    zero_grad = 1\n    def other(self):\n", "zero_grad is 1, not"),
    "no states": (STATES, "        pass\n", "state_tensors returned None; yield pairs of a name and a tensor"),
    "states without names": (STATES, "        return iter(self.moments)\n", r"yielded a Tensor; yield pairs"),
    "states turned around": (STATES, "        return [(m, 'm') for m in self.moments]\n", "yielded .* with 'm'"),
    "states by name": (STATES, "        return {'moments': self.moments}\n", "yielded 'moments'; yield pairs"),
    "a list of tensors": (STATES, "        yield 'moments', self.moments\n", "yielded 'moments' with a list"),
    "its own error": (STEP_END, "        return StepInfo(nothing=1)\n", r"^TypeError: .*nothing.*\(PLUGIN:54\)$"),
}  # fmt: skip
#: Found by `lorebench check` alone: a run says nothing. The check that fails, and with what.
BY_CHECK = {
    "forgotten states": (STATES, "        return iter(())\n", "states",
                         r"21 tensors live .* Momentum\.moments\[0\].*yields every tensor that is kept \(PLUGIN:60\)"),
    "states in a global": (
        STEP_END,
        "        globals().setdefault('KEPT', [])[:] = [p.detach().clone() for p in self.parameters]\n" + STEP_END,
        "states", r"\d+ tensors live .* a tensor \(\d+.* outside of its attributes"),
    "zero_grad does nothing": (
        "            p.grad = None\n", "            pass\n", "states",
        r"21 gradients outlive zero_grad, such as that of .*; free them, as by grad = None \(PLUGIN:56\)"),
    "names twice": ('f"moment {i}", m', '"moment", m', "states", "'moment' more than once"),
    "global random numbers in prepare": (
        "        return model\n\n    def stepper",
        "        torch.nn.init.normal_(model.lm_head.weight)\n        return model\n\n    def stepper",
        "randomness", r"prepare draws from the global random numbers.*context\.seed \(PLUGIN:29\)"),
    "random numbers without a seed": (
        "        return model\n\n    def stepper",
        "        model.lm_head.weight.data[0, 0] = float(np.random.default_rng().normal())\n        return model\n\n    def stepper",
        "randomness", "prepare draws numbers that do not follow from context.seed: lm_head.weight differs"),
    "global random numbers in step": (
        "            m.mul_(self.beta).add_(p.grad)\n",
        "            m.mul_(self.beta).add_(p.grad + 1e-3 * torch.randn_like(p))\n",
        "randomness", r"the stepper draws numbers.*PLUGIN:47"),
    "random of Python in step": (
        STEP_END, "        self.parameters[0].data += random.random() * self.lr\n" + STEP_END, "randomness", "the stepper"),
    "rate ignored": ("        self.lr = lr\n", "        self.lr = 0.01\n", "rate", r"set_lr is ignored: .*PLUGIN:44"),
    "first rate kept": ("        self.lr = lr\n", "        self.lr = self.lr or lr\n", "rate", r"set_lr\(0\) is ignored"),
    "decay beside the rate": (
        "p.sub_(self.lr * (m + self.optim.weight_decay * p))", "p.mul_(0.999).sub_(self.lr * m)", "rate", "every change, decay"),
    "state that is not saved": ('{"moments": self.moments}', '{"moments": []}', "resume", "goes on differently"),
    "state that cannot be loaded safely": (
        '{"moments": self.moments}', '{"moments": self.moments, "self": self}', "resume", "tensors and plain values"),
    "state that is not copied": (
        '        for m, saved in zip(self.moments, state["moments"]):\n            m.copy_(saved)\n',
        '        self.moments = state["moments"]\n', "copy", r"shares 21 tensors.*load_state_dict copies"),
    "updates by how many follow": (
        PREPARE, PREPARE.replace("return", "model.lm_head.weight.data *= 1 + 1 / context.updates\n        return"),
        "length", r"the first updates of 60 are others than in a training of 6: the loss of update 1 differs; .*\(PLUGIN:29\)"),
    "clip ignored": ("        if self.optim.clip is not None:\n", "        if False:\n", "clipping", "train.clip is ignored"),
    "update in the backward pass": (
        "        self.moments = [torch",
        "        for p in parameters:\n"
        "            p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'data', p.data - self.lr * p.grad))\n"
        "        self.moments = [torch",
        "accumulation", "moves in the backward pass, so grad_accum cannot work"),
    "gradients that are not summed": (
        "        self.moments = [torch",
        "        for p in parameters:\n"
        "            p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'grad', p.grad / (p.grad.norm() + 1e-9)))\n"
        "        self.moments = [torch",
        "accumulation", "four micro-batches move the weights"),
    "per_layer promised": (CAPS, "        return Caps(per_layer=True)\n", "per layer", "gradients outlive the backward"),
    "state_bits promised": (CAPS, "        return Caps(state_bits=frozenset({8}))\n", "state bits", "promises 8 bits"),
    "period promised": (CAPS, "        return Caps(period=3)\n", "period", "updates that said refreshed are none of 7"),
    "export returns None": (
        "    def export(self, model):\n        return model\n", "    def export(self, model):\n        pass\n",
        "export", r"export returned None; return the model \(PLUGIN:35\)"),
    "export changes the model": (
        "    def export(self, model):\n", "    def export(self, model):\n        model.lm_head.weight.data *= 2\n",
        "export", "says something else: logits differ"),
    "export of a wrapper": (
        "    def export(self, model):\n        return model\n",
        "    def export(self, model):\n        class Wrapped(torch.nn.Linear):\n            pass\n"
        "        model.lm_head.__class__ = Wrapped\n        return model\n",
        "export", "has a Wrapped at lm_head, where a Linear belongs"),
    "a hook that stays": (
        PREPARE, PREPARE.replace(
            "return", "model.lm_head.register_forward_hook(lambda layer, given, out: 3 * out)\n        return"),
        "export", "has a forward hook at lm_head that is not saved: saved and loaded, it says something else"),
    "a patched forward": (
        PREPARE, PREPARE.replace(
            "return", "right = model.lm_head.forward\n"
            "        model.lm_head.forward = lambda x: 3 * right(x)\n        return"),
        "export", "has a replaced forward at lm_head that is not saved"),
    "a number that no weight holds": (
        PREPARE, PREPARE.replace("return", "model.model.norm.variance_epsilon = 9.0\n        return"),
        "export", "saved and loaded, it says something else: logits differ"),
    "not a number": (STEP_END, "        self.parameters[0].data.fill_(float('nan'))\n" + STEP_END, "updates", "NaN or infinite"),
    "one parameter never moves": (
        "for p in model.parameters() if p.requires_grad]", "for p in list(model.parameters())[1:]]",
        "updates", "has requires_grad and never moves"),
    "values decide what is allocated": (
        "        self.moments = [torch.zeros_like(p) for p in parameters]\n",
        "        self.moments = [torch.zeros_like(p) for p in parameters]\n"
        "        if float(parameters[0].data.abs().max()) < 1:\n"
        "            self.moments.append(torch.zeros(999))\n",
        "forecast", "peak_allocated_bytes is .* in a forecast and .* in a run"),
}  # fmt: skip
NUMBER = iter(range(10**6))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of plug-ins, found last, with nothing left of it afterwards."""
    monkeypatch.setenv(imports.PLUGINS, str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def plugin(folder: Path, old: str = "", new: str = "") -> str:
    """Write a plug-in with a part replaced, under a name of its own; "module:Class"."""
    assert old in RIGHT
    name = f"plugin_{next(NUMBER)}"
    (folder / f"{name}.py").write_text(RIGHT.replace(old, new, 1) if old else RIGHT)
    return f"{name}:Mine"


def expected(pattern: str, name: str) -> str:
    return pattern.replace("PLUGIN", rf"{name.partition(':')[0]}\.py")


def run_of(name: str, **train: Any) -> Run:
    return Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": 16},
            "method": name,
            "train": {"stage": "finetune", "steps": 3, "batch": 2, **train},
        }
    )


@pytest.mark.parametrize("case", AT_RESOLVE)
def test_what_can_be_known_is_refused_before_anything_runs(folder: Path, case: str) -> None:
    old, new, pattern = AT_RESOLVE[case]
    name = plugin(folder, old, new)
    with pytest.raises(UserError, match=expected(pattern, name)) as said:
        resolve([run_of(name)])
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("case", IN_A_RUN)
def test_what_shows_in_a_run_is_a_row_that_names_the_mistake(folder: Path, case: str) -> None:
    old, new, pattern = IN_A_RUN[case]
    name = plugin(folder, old, new)
    [run] = resolve([run_of(name)])
    with pytest.raises((MethodError, TypeError)) as raised:
        count(run)
    outcome = classify(raised.value, "train")
    assert outcome.status == "error"
    assert re.search(expected(pattern, name), outcome.message), outcome.message
    assert isinstance(raised.value, MethodError) or case == "its own error"
    assert "\n" not in outcome.message


def test_an_export_without_a_model_names_the_mistake(folder: Path) -> None:
    name = plugin(folder, *BY_CHECK["export returns None"][:2])
    with pytest.raises(MethodError, match="export returned None; return the model"):
        members.export(name, build(name, {}), tiny_llama())


def checked(name: str, options: dict[str, Any] | None = None) -> dict[str, tuple[str, str]]:
    found: list[dict[str, Any]] = []
    answer({"method": name, "options": options or {}}, found.append)
    return {event["check"]: (event["outcome"], event["said"]) for event in found if "check" in event}


def test_a_right_plugin_passes_every_check(folder: Path) -> None:
    found = checked(plugin(folder))
    assert not {key: said for key, (outcome, said) in found.items() if outcome == "failed"}
    assert {key for key, (outcome, _) in found.items() if outcome == "not tried"} == {
        "per layer",
        "state bits",
        "period",
    }


@pytest.mark.parametrize(
    "observes",
    [
        "model.lm_head.register_forward_hook(lambda layer, given, out: None)",
        "right = model.lm_head.forward; model.lm_head.forward = lambda x: right(x)",
    ],
)
def test_what_only_observes_the_model_fails_no_check(folder: Path, observes: str) -> None:
    name = plugin(folder, PREPARE, PREPARE.replace("return", f"{observes}\n        return"))
    assert tried(Subject(((name, {}),)), ALL["export"])[0] == "ok"


#: The plug-in without its stepper, whose prepare draws weights from the global random numbers.
DRAWN = """
    def prepare(self, model, context):
        torch.nn.init.normal_(model.lm_head.weight)
        return model

    def export(self, model):
        return model
"""


def without_stepper(folder: Path) -> str:
    start, _, rest = RIGHT.partition("    def prepare(")
    name = f"plugin_{next(NUMBER)}"
    (folder / f"{name}.py").write_text(
        start + DRAWN.lstrip("\n") + "\n\nclass Momentum" + rest.partition("class Momentum")[2]
    )
    return f"{name}:Mine"


@pytest.mark.parametrize("stepper", [True, False])
def test_models_that_differ_by_chance_are_not_compared(folder: Path, stepper: bool) -> None:
    drawing = PREPARE.replace("return", "torch.nn.init.normal_(model.lm_head.weight)\n        return")
    found = checked(plugin(folder, PREPARE, drawing) if stepper else without_stepper(folder))
    assert [key for key, (outcome, _) in found.items() if outcome == "failed"] == ["randomness"]
    skipped = {key for key, (_, said) in found.items() if said == "randomness failed"}
    assert skipped == {
        "resume",
        "length",
        "scored",
        "rate",
        "accumulation",
        "clipping",
        "state bits",
        "forecast",
    }


def test_what_fails_without_a_stepper_names_a_place_of_the_author(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descent that trains it is a part of the harness."""
    monkeypatch.setattr(checks, "SAME_UPDATE", 0.0)
    name = without_stepper(folder)
    outcome, said = tried(Subject(((name, {}),)), ALL["accumulation"])
    assert outcome == "failed"
    assert said.endswith(f"promises the same update ({name.partition(':')[0]}.py:29)")


def test_a_member_that_is_inherited_from_a_part_of_ours_names_the_class_of_the_author(folder: Path) -> None:
    shipped = "from methods.parts.optim.adamw import AdamWStepper\n\n\nclass Mine("
    name = plugin(folder, "class Mine(", shipped)
    file = folder / f"{name.partition(':')[0]}.py"
    start, _, rest = file.read_text().partition("        return Momentum(")
    file.write_text(f"{start}        return AdamWStepper(model, optim)\n{rest.partition(chr(10))[2]}")
    method = build(name, {})
    stepper = method.stepper(tiny_llama(), OptimConfig())
    assert stepper is not None
    assert place(stepper.step, method.stepper) == f" ({file.name}:35)"
    assert place(stepper.step).startswith(" (adamw.py:")


def test_a_member_of_the_base_class_names_the_class_of_the_author(folder: Path) -> None:
    name = plugin(folder, PREPARE, "")
    method = build(name, {})
    assert place(method.prepare) == f" ({name.partition(':')[0]}.py:19)"
    assert place(Descent.step) == ""


@pytest.mark.parametrize("case", BY_CHECK)
def test_what_a_run_does_not_show_is_found_by_check(folder: Path, case: str) -> None:
    old, new, check, pattern = BY_CHECK[case]
    name = plugin(folder, old, new)
    outcome, said = tried(Subject(((name, {}),)), ALL[check])
    assert outcome == "failed"
    assert re.search(expected(pattern, name), said), said
    assert "\n" not in said


# ------------------------------------------------------------------------------------- the command
def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOREBENCH_CACHE": str(folder / "cache")}
    environment.pop(imports.PLUGINS, None)
    command = [*forked.command("harness.cli"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_prints_a_line_for_each_check_and_counts_them(folder: Path) -> None:
    name = plugin(folder, *BY_CHECK["rate ignored"][:2])
    said = call(folder, "check", name, "--set", "beta=0.5")
    assert said.returncode == 1, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].startswith("ok        model: loss ")
    assert sum(line.startswith("failed    rate: set_lr is ignored") for line in lines) == 1
    assert lines[-1] == f"{name}: 12 ok, 1 failed, 3 not tried"
    assert said.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("check", "nowhere:Mine"), "cannot import module 'nowhere'"),
        (("check", "galor"), "did you mean 'galore'"),
        (("check", "full", "--set", "beta=2"), "unknown key 'beta'"),
    ],
)
def test_bad_input_of_the_command_is_one_line(
    folder: Path, arguments: tuple[str, ...], expected: str
) -> None:
    said = call(folder, *arguments)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1), said.stderr
    assert expected in said.stderr


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ("import os\n        os._exit(7)", "process: worker exited with code 7 and left no result"),
        ("import os\n        os._exit(0)", "process: worker exited with code 0 and left no result"),
        ("raise SystemExit(0)", "SystemExit: 0 (PLUGIN"),
    ],
)
def test_a_plugin_that_ends_its_process_is_a_failed_check(folder: Path, ends: str, says: str) -> None:
    name = plugin(folder, STEP_END, f"        {ends}\n")
    said = call(folder, "check", name)
    assert said.returncode == 1
    assert says.replace("PLUGIN", name.partition(":")[0]) in said.stdout
    assert "1 failed" in said.stdout
