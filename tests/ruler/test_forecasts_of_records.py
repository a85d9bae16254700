"""Reference records hold peaks of whole trainings by the live meter; a forecast knows nothing of them."""

from __future__ import annotations

import pytest

from harness import record_index
from harness.config import Run
from harness.engine.forecast.dry_run import simulate
from tests.docs.sources import ROOT

#: A random state and, in older records, four bytes for each loss and norm that nobody had read.
SCALARS_BYTES = 256


@pytest.mark.parametrize(
    ("suite", "label"),
    [
        ("pretrain", "full"),
        ("pretrain", "galore r32"),
        ("pretrain", "sltrain 8-bit per-layer"),
        ("finetune", "velora + lora"),
        ("compressed", "welore"),
        ("compressed", "galore"),
    ],
)
def test_a_forecast_is_the_measured_peak(suite: str, label: str) -> None:
    folders = ROOT.glob(f"results/raw/cpu-*/{suite}")
    found = [one for folder in folders for one in record_index.read_all(folder) if one.label == label]
    assert found
    record = found[0]
    assert record.memory is not None
    assert record.memory.train is not None
    assert record.parameters is not None
    chosen = {
        method: {name: record.parameters.ranks[name] for name in facts["lrc"]}
        for method, facts in record.parameters.facts.items()
        if "lrc" in facts
    }
    report = simulate(Run.model_validate(record.config), chosen or None, granularity=1)
    measured = record.memory.train
    assert report.train is not None
    assert 0 <= measured.peak_allocated_bytes - report.train.peak_allocated_bytes <= SCALARS_BYTES
    for part in ("weights_trainable", "weights_frozen", "gradients", "optimizer", "buffers"):
        assert getattr(report.train, f"{part}_bytes") == getattr(measured, f"{part}_bytes"), part
