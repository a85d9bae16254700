"""The page of forecast and measured speeds: errors by hand, and what becomes a point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies import many_records, speed
from harness import suite


def point(label: str, forecast_s: float, measured_s: float, *refresh: float) -> speed.Point:
    return speed.Point(label, forecast_s, measured_s, *(refresh or (None, None)))


def test_errors_of_times_and_of_ratios() -> None:
    base, other = point("20m: full", 0.9, 1.0), point("20m: lora", 0.6, 0.8)
    assert base.error == pytest.approx(-0.1)
    assert other.error_of_ratio(base) == pytest.approx((0.6 / 0.9) / (0.8 / 1.0) - 1)
    assert other.size == "20m"


def test_a_page_says_how_far_the_points_are_off() -> None:
    found = [
        point("20m: full", 1.0, 1.0),
        point("20m: lora", 0.5, 0.4),
        point("20m: galore", 1.1, 1.0, 3.0, 2.0),
        point("60m: welore", 1.0, 2.0),  # its size has no full training
    ]
    text = speed.page(found, "this machine")
    assert "this machine, 4 configurations" in text
    assert "Error of the ratio: median 17.5% (wanted 4%), largest 25.0% (wanted 10%)" in text
    assert "Error of the time: median 17.5%, largest 50.0%" in text
    assert "| 20m: lora | 400 | 500 | +25.0% | 0.400 | 0.500 | +25.0% |  |  |  |" in text
    assert "| 20m: galore | 1000 | 1100 | +10.0% | 1.000 | 1.100 | +10.0% | 2000 | 3000 | +50.0% |" in text
    assert "| 60m: welore | 2000 | 1000 | -50.0% |  |  |  |  |  |  |" in text


def test_a_point_is_a_config_with_a_forecast_and_a_record(tmp_path: Path) -> None:
    runs = list(suite.load(speed.SUITE).runs)[:3]
    list(many_records.write(tmp_path / "results" / "raw", speed.SUITE, runs[:2]))
    parts = {"forward": 0.02, "backward": 0.05, "update": 0.01, "refresh": 0.002}
    rows = [
        {
            "label": run.name,
            "config_id": run.config_id,
            "speed": [{"device": "x", "parts_s": parts}] if run is not runs[1] else [],
            "forecast": {"period": 200},
        }
        for run in runs
    ]
    (tmp_path / speed.FORECASTS).parent.mkdir(parents=True)
    (tmp_path / speed.FORECASTS).write_text(json.dumps({"rows": rows}))
    (found,) = speed.points(tmp_path)
    assert (found.label, found.measured_s) == (runs[0].name, 0.1)
    assert found.forecast_s == pytest.approx(0.08)
    assert found.refresh_measured_s is None


def test_every_size_of_the_suite_has_full_training_to_compare_with() -> None:
    labels = {run.name for run in suite.load(speed.SUITE).runs}
    assert len(labels) >= 12
    assert all(f"{label.partition(':')[0]}: full" in labels for label in labels)
