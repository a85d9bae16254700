"""What `benchmarks/studies/alarms.py` plants does what it says, and its page says what was seen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.studies import alarms
from harness.config import OptimConfig
from tests.support.tiny import tiny_llama


def stepper(text: str) -> Any:
    """A stepper of the method with a text below it, for a small model with gradients."""
    source = (alarms.ROOT / alarms.TOUCHED).read_text(encoding="utf-8") + text
    module = types.ModuleType("planted")
    sys.modules["planted"] = module
    exec(compile(source, "planted.py", "exec"), module.__dict__)
    model = tiny_llama()
    method = module.GaLore(module.GaLore.Config(rank=2))
    made = method.stepper(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return made


def test_the_planted_sleep_is_a_tenth_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = iter([0.0, 10.0, 10.0, 30.0, 30.0])
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    made = stepper(alarms.SLOWER)
    made.step()
    made.step()
    assert slept == [pytest.approx(1.0), pytest.approx(2.0)]


def test_the_planted_bytes_are_a_mebibyte_of_optimizer_state() -> None:
    def size(made: Any) -> int:
        return sum(tensor.nbytes for _, tensor in made.state_tensors())

    plain, larger = stepper(""), stepper(alarms.LARGER)
    plain.step()
    larger.step()
    assert size(larger) - size(plain) == 1 << 20


# ------------------------------------------------------------------------------------------ outcomes
def outcome(name: str, **verdicts: str) -> dict[str, Any]:
    """What the command said: a verdict for each row and quantity, ok unless said otherwise."""
    cells = [
        {"row": row, "quantity": quantity, "verdict": verdicts.get(key, "ok"), "cause": f"cause of {key}"}
        for row in (alarms.ROW, alarms.CONTROL)
        for quantity in ("throughput", "peak memory")
        for key in [f"{row}_{quantity}".replace(" ", "_")]
    ]
    return {"name": name, "exit_code": 0, "cells": cells}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (outcome("unchanged 1"), True),
        (outcome("unchanged 1", galore_throughput="withheld"), True),
        (outcome("unchanged 1", galore_throughput="regression"), False),
        (outcome("unchanged 1", galore_throughput="improvement"), False),
        (outcome("unchanged 1", full_peak_memory="regression"), False),
        (outcome("slower"), False),
        (outcome("slower", galore_throughput="improvement"), False),
        (outcome("slower", galore_throughput="regression"), True),
        (outcome("slower", galore_throughput="regression", full_throughput="regression"), False),
        (outcome("larger", galore_peak_memory="regression"), True),
        (outcome("larger", galore_throughput="regression"), False),
    ],
)
def test_an_alarm_is_expected_where_something_was_planted_and_nowhere_else(
    seen: dict[str, Any], expected: bool
) -> None:
    assert alarms.as_expected(seen) is expected


def test_the_page_counts_false_alarms_and_verdicts() -> None:
    seen = [
        outcome("slower", galore_throughput="regression"),
        outcome("larger"),
        outcome("unchanged 1"),
        outcome("unchanged 2", galore_throughput="withheld"),
        outcome("unchanged 3", galore_throughput="regression"),
    ]
    text = alarms.page({"stand": {"CPU": "a CPU"}, "outcomes": seen})
    assert "False alarms: 1 in 3 tries (1 ok, 1 withheld, 1 regression)." in text
    assert "Found: slower. Environment: CPU a CPU." in text
    said = alarms.page({"stand": {}, "remarks": ["a doubt"], "outcomes": seen})
    assert said.endswith("\n\n* a doubt\n")
    assert "| larger | ok | cause of galore_peak_memory | cause of full_peak_memory |" in text


# ---------------------------------------------------------------------------------------- the command
@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls of `lorebench ab`, each of which fails; nothing is cloned, and no evidence is touched."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "git" not in command:
            calls.append(command)
            return subprocess.CompletedProcess(command, 2, "", "a warning\nlorebench: it cannot start\n")
        return subprocess.CompletedProcess(command, 0, b"a commit", b"")

    (tmp_path / "clone" / "methods").mkdir(parents=True)
    (tmp_path / "clone" / alarms.TOUCHED).write_text("")
    monkeypatch.setattr(alarms.subprocess, "run", run)
    monkeypatch.setattr(alarms, "OUTCOMES", tmp_path / "alarms.json")
    return calls


def test_what_an_earlier_call_wrote_is_not_read_after_one_that_fails(
    tmp_path: Path, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    old = outcome("slower", galore_throughput="regression")
    (tmp_path / "slower.json").write_text(json.dumps(old))
    assert alarms.main(["--only", "slower", "--folder", str(tmp_path)]) == 2
    assert len(ran) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "slower: no verdict, exit code 2: lorebench: it cannot start\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--only", "slowr"],
            "--only slowr: no such revision; known: slower, larger, unchanged 1, unchanged 2",
        ),
        (
            ["--only", "slower", "--only", "unchanged 3"],
            "--only unchanged 3: no such revision; known: slower, ",
        ),
        (["--only", "slower", "--write"], "--only with --write: a part must not replace the whole evidence"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_and_leaves_the_evidence(
    tmp_path: Path, ran: list[list[str]], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alarms.json").write_text("the evidence")
    assert alarms.main([*arguments, "--tries", "2", "--folder", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert not ran
    assert (tmp_path / "alarms.json").read_text() == "the evidence"
