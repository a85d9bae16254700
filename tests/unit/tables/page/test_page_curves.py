"""Charts of what was scored in training: every point where it belongs, and none where there is none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.tables.aggregate import rows as rows_of
from harness.tables.page import curves as page_curves
from harness.tables.page import document
from harness.tables.report import build as report
from harness.tables.report.view import View
from tests.unit.tables.report.test_report import fabricate
from tests.unit.tables.report.test_targets import TOKENS, scored, three

pytest.importorskip("plotly")


def test_each_run_is_a_line_over_tokens_and_one_over_seconds(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [30.0, 12.0, 9.0, 8.0], [31.0, 12.0, 9.0, 8.0])
    found += three(tmp_path, "slow", [20.0, math.nan, 7.0, 6.0], update_s=0.2)
    charts, notes = page_curves.charts(View(tuple(rows_of(found)), "full", {"world-b": 10.0}))
    assert notes == []
    assert [chart.title for chart in charts] == [
        "Perplexity on world-b over tokens of training",
        "Perplexity on world-b over seconds of training",
    ]
    tokens, seconds = (chart.content for chart in charts)
    assert [trace["name"] for trace in tokens["data"]] == ["full", "full", "slow"]
    assert [trace["showlegend"] for trace in tokens["data"]] == [True, False, True]
    assert tokens["data"][0]["x"] == [50 * TOKENS, 100 * TOKENS, 150 * TOKENS, 200 * TOKENS]
    assert tokens["data"][0]["y"] == [30.0, 12.0, 9.0, 8.0]
    assert tokens["data"][2]["y"] == [20.0, None, 7.0, 6.0]
    assert seconds["data"][2]["x"] == pytest.approx([10.0, 20.0, 30.0, 40.0])
    assert tokens["layout"]["yaxis"]["type"] == "log"
    (target,) = tokens["layout"]["shapes"]
    assert (target["y0"], target["y1"]) == (10.0, 10.0)
    assert "dotted: the target, 10" in charts[0].caption


def test_very_many_points_are_thinned_and_the_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_curves, "POINTS", 4)
    found = [scored(tmp_path, "full", [9.0, 8.0, 7.0, 6.0])]
    charts, _ = page_curves.charts(View(tuple(rows_of(found)), "full"))
    assert charts[0].content["data"][0]["y"] == [9.0, 7.0, 6.0]


def test_a_series_that_is_missing_is_said_and_the_rest_is_drawn(tmp_path: Path) -> None:
    found = three(tmp_path, "full", [30.0, 12.0, 9.0, 8.0], [31.0, 12.0, 9.0, 8.0])
    assert found[0].series is not None
    (tmp_path / found[0].series.file).unlink()
    charts, (note,) = page_curves.charts(View(tuple(rows_of(found)), "full"))
    assert note.startswith("not drawn: 1 run: ")
    assert len(charts[0].content["data"]) == 1


def test_the_page_has_the_section_only_where_runs_were_scored_in_training(tmp_path: Path) -> None:
    for found, has in (([fabricate("full")], False), (three(tmp_path, "full", [9.0, 8.0, 7.0, 6.0]), True)):
        built = report.build(found, baseline="full", targets={"world-b": 7.5})
        text = document.build(built, found, baseline="full", targets={"world-b": 7.5})
        assert ('id="curves"' in text) is has
        assert ("Training to perplexity 7.5 on world-b" in text) is has
