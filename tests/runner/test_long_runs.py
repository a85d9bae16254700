"""A hundred thousand updates: memory does not grow with them, the record stays small, the page opens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import Remember

from harness import series
from harness.engine.process.child import WORKER
from harness.engine.runner import Settings, sweep
from harness.files import ROOT
from harness.suite import load
from tests.support import forked

UPDATES = 100_000
MIB = 1 << 20
SUITE = f"""
suite: long
question: Does it last?
base:
  model: {{source: shape, name: nano}}
  data: {{source: random, seq_len: 4}}
  train: {{steps: {UPDATES}, batch: 1, checkpoint: {{every: 20000}}}}
rows:
- {{label: lora, method: lora}}
"""


class Watching(Remember):
    """Notes the memory of the worker at each report."""

    def __init__(self) -> None:
        super().__init__()
        self.rss: dict[int, int] = {}

    def event(self, event: Mapping[str, Any]) -> None:
        if "loss" in event:
            for child in psutil.Process().children():
                if "harness.engine.worker" in child.cmdline():
                    self.rss[event["step"]] = child.memory_info().rss


@pytest.mark.slow
def test_a_hundred_thousand_updates_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    suite, page = tmp_path / "long.yaml", tmp_path / "page.html"
    suite.write_text(SUITE)
    display = Watching()
    settings = Settings(tmp_path / "results", tmp_path / "cache", device="cpu", command=WORKER)
    result = sweep(load(suite), settings, display, lambda run: "lorebench run")
    (record,) = result.records.values()
    assert record.outcome.status == "ok", record.outcome
    assert record.training is not None
    assert record.training.steps == series.updates(record) == UPDATES
    assert (result.folder / f"{record.run_id}.json").stat().st_size <= 100_000
    early = display.rss[min(step for step in display.rss if step >= UPDATES // 4)]
    assert display.rss[UPDATES] - early < 24 * MIB
    command = [*forked.command("harness.cli"), "report", str(suite), "--results", str(settings.results)]
    environment = {**os.environ, "LOREBENCH_CACHE": str(tmp_path / "cache")}
    subprocess.run([*command, "--out", str(page)], cwd=ROOT, env=environment, check=True, timeout=300)
    drawn = page.stat().st_size
    assert '"name":"lora"' in page.read_text()  # the curve of its losses
    assert drawn < 8 * MIB, f"{drawn:,} bytes"
