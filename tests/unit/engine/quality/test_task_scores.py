"""Answers made by hand: what is right, what cannot be read, what a script reports that leaves that out."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from harness.engine.quality import task_scores
from harness.engine.quality.task_scores import UNPARSABLE
from harness.record import Accuracy

TASK: Any = SimpleNamespace(
    get_config=lambda key: {"version": 1, "chance": 0.2}, OUTPUT_TYPE="generate_until", VERSION=0
)
WANTED = ["A", "B", "C", "D", "E", "A", "B"]


def samples(read: list[str]) -> list[dict[str, Any]]:
    """What lm-eval logs of answers that a filter read like this."""
    return [
        {"filtered_resps": [one], "exact_match": float(one == wanted)}
        for one, wanted in zip(read, WANTED, strict=True)
    ]


def scored(read: list[str], official: list[str] | None = None) -> Accuracy:
    honest, legacy = samples(read), samples(official or read)
    right = task_scores.are_right("task", honest, "exact_match")
    found = task_scores.accuracy(TASK, honest, right)
    return task_scores.as_published(
        found, honest, legacy, task_scores.are_right("task", legacy, "exact_match")
    )


def test_unparsable_answers_are_wrong_in_ours_and_absent_from_the_published_figure() -> None:
    found = scored(["A", "B", "X", UNPARSABLE, UNPARSABLE, "A", UNPARSABLE])
    assert (found.correct, found.documents, found.unparsable) == (3, 7, 3)
    assert found.accuracy == 3 / 7
    assert (found.legacy_accuracy, found.legacy_documents) == (3 / 4, 4)


@pytest.mark.parametrize("kinds", list(itertools.product(["right", "wrong", "unread"], repeat=3)))
def test_leaving_out_what_cannot_be_read_never_lowers_the_figure(kinds: tuple[str, ...]) -> None:
    read = [
        {"right": wanted, "wrong": "Z", "unread": UNPARSABLE}[kind]
        for kind, wanted in zip((*kinds, "right", "wrong", "unread", "right"), WANTED, strict=True)
    ]
    found = scored(read)
    assert found.accuracy * found.documents == pytest.approx(found.correct, abs=1e-9)
    assert found.legacy_accuracy is not None
    assert found.legacy_accuracy > found.accuracy, "one answer is unread in every case, and one is right"


def test_where_everything_can_be_read_both_figures_are_the_same() -> None:
    found = scored(["A", "A", "A", "D", "D", "D", "B"])
    assert (found.unparsable, found.legacy_documents) == (0, 7)
    assert found.legacy_accuracy == found.accuracy


def test_where_nothing_can_be_read_the_published_figure_does_not_exist() -> None:
    found = scored([UNPARSABLE] * 7)
    assert (found.accuracy, found.unparsable, found.legacy_documents) == (0.0, 7, 0)
    assert found.legacy_accuracy is None


def test_a_looser_reading_finds_answers_where_ours_finds_none() -> None:
    ours = [UNPARSABLE] * 4 + ["E", "A", "B"]
    found = scored(ours, official=["E", "E", "E", "D", "E", "A", "B"])
    assert (found.unparsable, found.legacy_documents) == (4, 7)
    assert (found.accuracy, found.legacy_accuracy) == (3 / 7, 4 / 7)
