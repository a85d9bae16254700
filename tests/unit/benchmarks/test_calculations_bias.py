"""The bias of a mean over N + 1, multiples of 1 / N, and arithmetic over published values."""

from __future__ import annotations

from math import exp, log

import pytest

from benchmarks.papers.calculations import evaluate
from harness.errors import UserError
from tests.unit.benchmarks.test_calculations import value


def test_the_bias_is_undone_exactly() -> None:
    losses = [3.1, 3.4, 2.9, 3.6]
    published = exp(sum(losses) / (len(losses) + 1))
    honest = exp(sum(losses) / len(losses))
    assert value("unbiased_perplexity", perplexity=published, batches=4) == pytest.approx(honest, rel=1e-11)


@pytest.mark.parametrize(
    ("rows", "devices", "batches"), [(256, 1, 182), (128, 4, 91), (16, 8, 363), (8, 64, 91)]
)
def test_batches_follow_from_micro_batch_and_devices(rows: int, devices: int, batches: int) -> None:
    assert round(value("evaluation_batches", rows_per_batch=rows, devices=devices)) == batches


@pytest.mark.parametrize(
    ("published", "rows", "devices", "unbiased"),
    [(34.88, 256, 1, 35.6), (25.36, 256, 1, 25.8), (18.95, 128, 4, 19.6), (15.64, 16, 8, 15.8)],
)
def test_the_published_perplexities_were_higher_by_this(
    published: float, rows: int, devices: int, unbiased: float
) -> None:
    found = value("unbiased_perplexity", perplexity=published, rows_per_batch=rows, devices=devices)
    assert round(found, 1) == unbiased


def test_batches_or_settings_are_asked_for_and_not_both() -> None:
    for arguments in ({}, {"batches": 5, "rows_per_batch": 5}):
        with pytest.raises(UserError, match="give one of them"):
            evaluate("unbiased_perplexity", {"perplexity": 20.0, **arguments})


@pytest.mark.parametrize(
    ("percent", "count", "fits"),
    [(98.667, 300, True), (98.666, 300, True), (98.665, 300, False), (65.667, 150, False), (50.0, 3, False)],
)
def test_a_percentage_is_a_multiple_to_its_last_decimal(percent: float, count: int, fits: bool) -> None:
    assert value("multiple_of", percent=percent, count=count) is fits


def test_the_nearest_multiple_is_given_with_its_distance() -> None:
    of = {"percent": 83.742, "count": 150}
    assert value("multiple_of", give="numerator", **of) == 126
    assert value("multiple_of", give="nearest", **of) == pytest.approx(84.0)
    assert value("multiple_of", give="distance", **of) == pytest.approx(0.258)


def test_multiples_in_a_list_are_counted() -> None:
    assert value("multiples", percents=[50.0, 33.333, 33.4, 66.666], count=3) == 2
    assert value("multiples", percents=[50.0, 33.333, 33.4, 66.666], count=6) == 3


def test_a_mean_is_that_of_the_cells_and_not_the_printed_one() -> None:
    apollo = [59.75, 89.89, 90.74, 74.00, 93.11, 85.62, 91.70, 89.38]
    assert round(value("mean", values=apollo), 2) == 84.27
    assert value("total", values=[1, 2.5]) == 3.5


@pytest.mark.parametrize(
    ("give", "expected"), [("ratio", 0.8), ("percent", 80.0), ("reduction", 20.0), ("overhead", -20.0)]
)
def test_a_ratio_is_given_as_asked(give: str, expected: float) -> None:
    assert value("ratio", numerator=4, denominator=5, give=give) == pytest.approx(expected)


def test_derived_claims_follow_from_published_values() -> None:
    assert round(value("ratio", numerator=18.3, denominator=67.4, give="reduction")) == 73
    assert round(value("ratio", numerator=22.0, denominator=59.92, give="reduction"), 1) == 63.3
    assert value("difference", minuend=34.88, subtrahend=33.76) == pytest.approx(1.12)


def test_tokens_are_positions_times_the_share_that_is_text() -> None:
    assert round(value("tokens", steps=150_000), 1) == 19.7
    assert value("tokens", steps=10, rows=2, length=8, share=0.5, unit="elements") == 80


def test_a_value_has_no_digits_that_differ_between_machines() -> None:
    found = value("unbiased_perplexity", perplexity=34.88, batches=182)
    assert found == float(f"{34.88 * exp(log(34.88) / 182):.12g}")
