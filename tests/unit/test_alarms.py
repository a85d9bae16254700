"""What `benchmarks/alarms.py` plants does what it says, and its page says what was seen."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import alarms
from harness.config import OptimConfig
from tests.tiny import tiny_llama


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
    assert "Found: slower. On: CPU a CPU." in text
    said = alarms.page({"stand": {}, "remarks": ["a doubt"], "outcomes": seen})
    assert said.endswith("\n\n* a doubt\n")
    assert "| larger | ok | cause of galore_peak_memory | cause of full_peak_memory |" in text


def test_the_page_follows_from_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = tmp_path / "alarms.json"
    figures.write_text(json.dumps({"stand": {}, "outcomes": [outcome("unchanged 1")]}))
    monkeypatch.setattr(alarms, "FIGURES", figures)
    monkeypatch.setattr(alarms, "PAGE", tmp_path / "alarms.md")
    assert alarms.main(["--render-only"]) == 1
    assert alarms.main(["--render-only"]) == 0
