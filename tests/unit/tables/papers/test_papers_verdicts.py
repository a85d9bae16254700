"""What is said of a published figure beside ours: units, tolerance, order, and each verdict."""

from __future__ import annotations

import math

import pytest

from harness.errors import UserError
from harness.tables.papers.judge import agrees, same_order, verdict, within_factor
from harness.tables.papers.lookup import Ours, converted
from harness.tables.papers.schema import Answer, Tolerance

CLOSE = Tolerance(relative=0.1, factor=2, reason="a test")
FOUND = Answer.model_validate({"ours": {"forecast": "x"}})


def lacking(needs: str) -> Answer:
    return Answer.model_validate({"needs": needs, "why": "it is not at hand"})


def measured(value: float | str | bool) -> Ours:
    return Ours(value, "measured")


# ---------------------------------------------------------------------------------------------- units
def test_bytes_are_compared_in_the_unit_of_the_paper() -> None:
    assert converted(2**30, "bytes", "GiB") == 1
    assert converted(1, "GiB", "GB") == pytest.approx(1.073741824)
    assert converted(1.024, "GB", "G") == pytest.approx(1)


def test_a_share_becomes_percent() -> None:
    assert converted(0.25, "share", "percent") == pytest.approx(25)


def test_a_value_without_a_unit_is_taken_as_that_of_its_terms() -> None:
    assert converted(86.28, "", "percent") == 86.28


def test_bytes_are_no_perplexity() -> None:
    with pytest.raises(UserError, match="'bytes' cannot be compared with one in 'ppl'"):
        converted(1, "bytes", "ppl")


# ------------------------------------------------------------------------------------ tolerance, order
def test_half_of_the_last_digit_is_within_the_tolerance_and_more_is_not() -> None:
    digit = Tolerance(absolute=0.005, reason="a test")
    assert agrees(86.28, 86.285, digit)
    assert agrees(86.28, 86.275, digit)
    assert not agrees(86.28, 86.2851, digit)


def test_the_larger_of_relative_and_absolute_room_counts() -> None:
    both = Tolerance(relative=0.1, absolute=5, reason="a test")
    assert agrees(10, 15, both)
    assert agrees(100, 110, both)
    assert not agrees(100, 110.1, both)


def test_one_pair_the_other_way_round_breaks_the_order() -> None:
    assert same_order([(1, 10), (2, 20), (3, 30)])
    assert not same_order([(1, 10), (2, 30), (3, 20)])


def test_equal_figures_contradict_no_order() -> None:
    assert same_order([(1, 10), (1, 20), (2, 20)])


def test_one_figure_alone_has_no_order() -> None:
    assert not same_order([(1, 10)])


def test_a_factor_holds_in_both_directions_and_across_no_sign() -> None:
    assert within_factor(10, 20, 2)
    assert within_factor(20, 10, 2)
    assert not within_factor(10, 20.1, 2)
    assert not within_factor(-1, 1, 2)
    assert not within_factor(0, 1, 2)


# -------------------------------------------------------------------------------------------- verdicts
COLUMN = [(100.0, 150.0), (200.0, 300.0)]


@pytest.mark.parametrize(
    ("published", "ours", "arithmetic", "column", "expected"),
    [
        (100, 105, False, COLUMN, "reproduced"),
        (100, 105, True, COLUMN, "arithmetic checked"),
        (100, 150, False, COLUMN, "same order"),
        (100, 150, False, [(100.0, 150.0), (200.0, 140.0)], "differs"),
        (100, 150, False, [(100.0, 150.0)], "differs"),
        (100, 201, False, COLUMN, "differs"),
        (100, 150, True, COLUMN, "differs"),
        (100, math.inf, False, COLUMN, "differs"),
    ],
)
def test_numbers_are_judged_by_tolerance_then_by_order(
    published: float, ours: float, arithmetic: bool, column: list[tuple[float, float]], expected: str
) -> None:
    assert verdict(FOUND, published, measured(ours), CLOSE, arithmetic, column) == expected


def test_a_formula_that_holds_is_checked_and_one_that_does_not_differs() -> None:
    assert verdict(FOUND, "m*n", measured(True), None, True) == "arithmetic checked"
    assert verdict(FOUND, "m*n", measured(False), None, True) == "differs"


def test_a_text_is_checked_letter_by_letter() -> None:
    assert verdict(FOUND, "256 / 768", measured("256 / 768"), None, True) == "arithmetic checked"
    assert verdict(FOUND, "128 / 256", measured("128 / 512"), None, True) == "differs"


def test_a_number_of_ours_beside_a_printed_nan_differs() -> None:
    assert verdict(FOUND, "NaN", measured(3.0), CLOSE, False) == "differs"


@pytest.mark.parametrize("needs", ["weights", "data", "device"])
def test_what_lacks_is_named(needs: str) -> None:
    assert verdict(lacking(needs), 1, None, None, False) == f"needs {needs}"


def test_a_figure_of_ours_wins_over_what_was_said_to_lack() -> None:
    assert verdict(lacking("weights"), 1, measured(1), CLOSE, False) == "reproduced"


def test_what_does_not_run_as_published_is_never_anything_else() -> None:
    broken = Answer(does_not_run=True, why="the class raises")
    assert verdict(broken, 1, None, None, False) == "does not run as published"


def test_two_numbers_without_a_tolerance_are_a_mistake_in_the_data() -> None:
    with pytest.raises(UserError, match="no tolerance"):
        verdict(FOUND, 1, measured(1), None, False)


# --------------------------------------------------------------------------------------------- answers
def test_an_answer_that_may_be_empty_says_what_lacks() -> None:
    suite = {"suite": "shapes", "only": {"label": "x"}, "quantity": "tokens_per_s"}
    with pytest.raises(UserError, match="needs `ours`, and `needs`"):
        Answer.model_validate({"ours": suite})


def test_what_lacks_has_a_reason() -> None:
    with pytest.raises(UserError, match="reason in `why`"):
        Answer.model_validate({"needs": "data"})
