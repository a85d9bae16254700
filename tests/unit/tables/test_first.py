"""Lists that are cut: the others are counted, and one alone is named, since a count takes as much room."""

from __future__ import annotations

import pytest

from harness.tables.format import first


@pytest.mark.parametrize(
    ("number", "shown"),
    [(2, ["0", "1"]), (3, ["0", "1", "2"]), (4, ["0", "1", "2 more"]), (0, [])],
)
def test_one_that_is_left_is_named(number: int, shown: list[str]) -> None:
    assert first(list(map(str, range(number))), 2, "{} more") == shown
