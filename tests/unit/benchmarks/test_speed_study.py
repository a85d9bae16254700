"""The page of forecast and measured speeds: errors by hand, and what becomes a point."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.studies import speed
from harness import devices, suite
from harness.engine.forecast.dry_run import simulate
from harness.speed_forecast import seconds_of
from tests.unit.engine.forecast.test_dry_run import run_of


def point(label: str, forecast_s: float, measured_s: float, ratio: float, *refresh: float) -> speed.Point:
    more = dict(zip(("refresh_forecast_s", "refresh_measured_s"), refresh, strict=False))
    given = {"forecast_s": forecast_s, "measured_s": measured_s, "measured_ratio": ratio}
    return speed.Point(label=label, **given, **more)


def test_errors_of_times_and_of_ratios() -> None:
    base, other = point("20m: full", 0.9, 1.0, 1.0), point("20m: lora", 0.6, 0.8, 0.75)
    assert base.error == pytest.approx(-0.1)
    assert other.error_of_ratio(base) == pytest.approx((0.6 / 0.9) / 0.75 - 1)
    assert other.size == "20m"


def test_a_page_says_how_far_the_points_are_off() -> None:
    found = [
        point("20m: full", 1.0, 1.0, 1.0),
        point("20m: lora", 0.5, 0.4, 0.4),
        point("20m: galore", 1.1, 1.0, 1.0, 3.0, 2.0),
        point("60m: welore", 1.0, 2.0, 2.0),  # its size has no full training
    ]
    profile = devices.profile("h100").model_copy(update={"title": "this machine"})
    text = speed.page(speed.Study(profile=profile, points=found))
    assert "this machine, 4 configurations" in text
    assert "Error of the ratio: median 17.5% (wanted 4%), largest 25.0% (wanted 10%)" in text
    assert "Error of the time: median 17.5%, largest 50.0%" in text
    assert "| 20m: lora | 400 | 500 | +25.0% | 0.400 | 0.500 | +25.0% |  |  |  |" in text
    assert "| 20m: galore | 1000 | 1100 | +10.0% | 1.000 | 1.100 | +10.0% | 2000 | 3000 | +50.0% |" in text
    assert "| 60m: welore | 2000 | 1000 | -50.0% |  |  |  |  |  |  |" in text


def test_a_point_is_measured_and_forecast(monkeypatch: Any) -> None:
    """Two tiny rows: real updates by a clock that says how long each takes, in whichever order they come.

    Full training takes 4, then 2 seconds; GaLore 9 in its first update, then 1, and 2 with a refresh.
    """
    for name, value in {"WARM_UP": 1, "ROUNDS": 2, "REFRESHES": 1}.items():
        monkeypatch.setattr(speed, name, value)
    runs = [
        run_of(method, shape="nano", length=16, train__stage="pretrain").model_copy(
            update={"label": f"nano: {label}"}
        )
        for label, method in (("full", "full"), ("galore", {"galore": {"rank": 4}}))
    ]
    clock = _Clock({"full": [7.0, 4.0, 2.0, 2.0], "galore": [9.0, 1.0, 1.0, 2.0]})
    monkeypatch.setattr(speed.time, "perf_counter", clock)
    made = speed.trainer_of
    monkeypatch.setattr(speed, "trainer_of", lambda run: clock.watch(made(run), run))
    full, galore = speed.measure(runs, devices.profile("h100"))
    assert (full.measured_s, full.measured_ratio, full.refresh_measured_s) == (2.0, 1.0, None)
    assert (galore.measured_s, galore.refresh_measured_s) == (1.0, 2.0)
    assert galore.measured_ratio == pytest.approx((1 / 4 + 1 / 2) / 2)  # the median of two
    report = simulate(runs[1], granularity=1)
    plain = sum(work.count * seconds_of(work, devices.profile("h100")) for work in report.work)
    again = sum(work.count * seconds_of(work, devices.profile("h100")) for work in report.refresh_work)
    assert galore.forecast_s == pytest.approx(plain)
    assert galore.refresh_forecast_s == pytest.approx(again)


class _Clock:
    """A clock that moves by given seconds in each update of a watched trainer."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        return self.now

    def watch(self, trainer: Any, run: Any) -> Any:
        update, own = trainer._update, iter(self.seconds[run.label.partition(": ")[2]])

        def timed() -> Any:
            self.now += next(own)
            return update()

        trainer._update = timed
        return trainer


def test_every_size_of_the_suite_has_full_training_to_compare_with() -> None:
    labels = {run.name for run in suite.load(speed.SUITE).runs}
    assert len(labels) >= 12
    assert all(f"{label.partition(':')[0]}: full" in labels for label in labels)
