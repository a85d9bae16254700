"""Curves of training losses from reference records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from benchmarks.studies import curves
from harness.errors import UserError
from tests.docs.sources import ROOT

RAW = ROOT / "results" / "raw"


def test_a_line_is_the_mean_over_seeds_and_ends_at_the_tokens_of_the_run() -> None:
    lines = curves.lines_of("pretrain", RAW)
    full = [path for path in RAW.glob("*/pretrain/*.json") if json.loads(path.read_text())["label"] == "full"]
    content = [json.loads(path.read_text()) for path in full]
    losses = [
        list(pandas.read_parquet(path.with_name(item["series"]["file"]))["loss"])
        for path, item in zip(full, content, strict=True)
    ]
    tokens, loss = lines["full"]
    assert len(full) == 3
    assert tokens[-1] == content[0]["training"]["tokens"]
    assert len(tokens) == len(loss) <= curves.POINTS
    last = len(losses[0]) - round(tokens[-2] / tokens[-1] * len(losses[0]))
    expected = sum(sum(item[-last:]) / last for item in losses) / 3
    assert loss[-1] == pytest.approx(expected, abs=1e-12)


def test_rows_stand_in_the_order_of_the_suite() -> None:
    assert list(curves.lines_of("pretrain", RAW))[:3] == ["full", "low-rank BA only", "lora"]


def test_a_suite_without_records_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records of suite 'pretrain' with a loss"):
        curves.lines_of("pretrain", tmp_path)


def test_a_chart_is_drawn_again_only_when_its_values_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    lines = {"full": ([1.0, 2.0], [3.0, 2.0])}
    monkeypatch.setattr(curves, "lines_of", lambda name, raw: lines)
    ((path, text),) = curves.pages(tmp_path)
    assert path == tmp_path / "results" / "tables" / "pretrain_small-loss.svg"
    path.parent.mkdir(parents=True)
    path.write_text(f"{text}<!-- by another version of matplotlib -->", encoding="utf-8")
    assert list(curves.pages(tmp_path)) == [(path, path.read_text(encoding="utf-8"))]
    lines["full"][1][0] = 3.5
    ((_, other),) = curves.pages(tmp_path)
    assert "another version" not in other
    assert other != text
