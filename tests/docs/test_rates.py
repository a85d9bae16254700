"""Each reported learning rate is the best of those tried, and inside of them, by the reference records."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import record, record_index, suite

REFERENCE = Path(__file__).parents[2] / "results" / "raw"
TUNED = [
    path.stem
    for path in sorted(suite.suites_folder().glob("*.yaml"))
    if "tuning" in path.read_text() and suite.load(path).runs[0].tuning
]


def perplexity(tried: record.Record) -> float:
    """The one perplexity of a run of a grid; infinite where it has none, e.g. because it diverged."""
    scores = tried.quality.perplexity.values() if tried.quality else ()
    return min((score.perplexity for score in scores), default=float("inf"))


def test_there_are_tuned_suites() -> None:
    assert {"welore", "pretrain", "finetune", "compressed"} <= set(TUNED)


@pytest.mark.parametrize("name", TUNED)
def test_each_row_trains_at_the_best_rate_that_was_tried_for_it(name: str) -> None:
    rows = {run.name: run for run in suite.load(name).runs if run.train.stage != "compress"}
    for label, row in rows.items():
        assert row.tuning is not None
        records = [
            tried
            for folder in REFERENCE.glob(f"*/{row.tuning.suite}")
            for tried in record_index.read_all(folder)
            if tried.label == label
        ]
        best = min(records, key=perplexity)
        scores = {tried.config["train"]["lr"]: perplexity(tried) for tried in records}
        assert sorted(scores) == sorted(row.tuning.grid), label
        assert any(rate < row.train.lr and score < float("inf") for rate, score in scores.items()), label
        assert row.train.lr < max(scores), label
        assert best.config["train"]["lr"] == row.train.lr, label
