"""How memory grows: fits that recover what is known, and a page that guesses no time."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.studies.memory import charts, fits, growth, table
from harness.config import Run
from harness.engine.run.environment import ROOT
from harness.forecast import MemoryReport
from harness.record import Time
from harness.tables.plan.plan import read_forecasts
from tests.unit.benchmarks.test_memory_page import forecast, record


@cache
def rows() -> dict[str, Run]:
    return table.resolved()


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 1.75])
def test_a_power_law_is_recovered_with_its_factor(exponent: float) -> None:
    x = [58e6, 134e6, 368e6, 1339e6, 6738e6]
    law = fits.power(x, [3.5 * value**exponent for value in x])
    assert law.exponent == pytest.approx(exponent, abs=1e-12)
    assert law.factor == pytest.approx(3.5)
    assert law.worst < 1e-9


def test_a_line_is_recovered_and_no_power_law_is_seen_in_it() -> None:
    x = [1.0, 4.0, 16.0, 64.0]
    y = [8e9 + 3e7 * value for value in x]
    line = fits.affine(x, y)
    assert (line.constant, line.slope) == pytest.approx((8e9, 3e7))
    assert line.worst < 1e-12
    assert fits.power(x, y).worst > 0.03
    assert 0 < fits.power(x, y).exponent < 0.1


def test_the_worst_point_says_how_far_a_fit_misses() -> None:
    assert fits.affine([0.0, 1.0, 2.0], [1.0, 2.0, 1.0]).worst == pytest.approx(1 / 3)


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0]), ([2.0, 2.0], [1.0, 3.0])])
def test_fewer_than_two_different_points_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="two different points"):
        fits.power(x, y)
    with pytest.raises(ValueError, match="two different points"):
        fits.affine(x, y)


def test_a_power_law_of_what_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        fits.power([1.0, 2.0], [0.0, 1.0])


def made_up() -> dict[str, MemoryReport]:
    """Peaks of 10 GiB + 1 GiB per sequence."""
    everything = growth.suite_of(rows()).runs
    return {run.config_id: forecast(run, 10, 0, 0, 0, run.train.batch) for run in everything}


def test_the_page_holds_peaks_and_fits_and_says_that_nothing_was_timed() -> None:
    text = growth.page(growth.sweeps(rows()), made_up(), growth.step_seconds(rows(), None), None)
    batch = text.split("## Batch")[1].split("## Length")[0]
    (line,) = [line for line in batch.splitlines() if line.startswith("| full |")]
    cells = line[2:-2].split(" | ")
    assert cells[1:4] == ["11.00", "26.00", "74.00"]
    assert cells[-3:] == ["10.00", "1024.00", "0.0%"]
    assert "Not measured: there is no record of a GPU with times." in text


def test_seconds_come_from_plain_steps_of_records_and_are_absent_elsewhere() -> None:
    timed = {}
    for size, seconds in (("130m", 0.2), ("1b", 2.0)):
        run = rows()[f"{size}: full"]
        timed[run.config_id] = record(run, 1)
        timed[run.config_id].time = Time(step_s=[seconds, 9.0, seconds], refresh_step=[False, True, False])
    machine = table.Measured("cuda, Abacus GPU", timed)
    seconds = growth.step_seconds(rows(), machine)
    assert seconds == {"full": {"130m": 0.2, "1b": 2.0}}
    text = growth.page(growth.sweeps(rows()), {}, seconds, machine)
    assert "| full | not measured | 0.2 | not measured | 2 | 1.129 |" in text
    assert "| galore | not measured | not measured | not measured | not measured | not measured |" in text


def test_the_mark_of_a_chart_tells_its_values_apart() -> None:
    assert charts.mark(0) != charts.mark(1)


def test_every_point_has_a_current_forecast() -> None:
    wanted = {run.config_id for run in growth.suite_of(rows()).runs}
    assert set(read_forecasts(ROOT / growth.FORECASTS)) == wanted, "run: nox -s bench-shapes"
