"""The committed forecasts at scale are those of the suites as they are now."""

from __future__ import annotations

import json

import pytest

from benchmarks.studies import at_scale
from harness import suite as suites
from harness.engine.run import checks
from harness.files import ROOT

NAMES = [name for name in suites.shipped_suites() if suites.load(name).at_scale()]


def test_some_suites_have_forecasts_at_scale() -> None:
    assert {"welore", "finetune", "pretrain", "compressed"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_forecasts_are_of_the_configs_of_today(name: str) -> None:
    scaled = suites.load(name).at_scale()
    assert scaled is not None
    wanted = {run.name: run.config_id for run in checks.resolve(scaled.runs, text=False)}
    rows = json.loads((ROOT / at_scale.FOLDER / f"{name}.json").read_text())["rows"]
    assert {row["label"]: row["config_id"] for row in rows} == wanted, "run: nox -s bench-at-scale"
