"""Two sweeps in one folder, killed at random moments: nothing is lost, corrupt, done twice or left over."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import real_campaign, stub_campaign


def test_a_few_kills_harm_nothing(tmp_path: Path) -> None:
    said, faults = stub_campaign(6, 3, tmp_path, count=3)
    assert faults == []
    assert said.total() == 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hundred_kills_harm_nothing(seed: int, tmp_path: Path) -> None:
    said, faults = stub_campaign(100, seed, tmp_path)
    assert faults == []
    assert said.total() == 100


@pytest.mark.slow
def test_kills_of_the_real_worker_harm_nothing(tmp_path: Path) -> None:
    assert real_campaign(10, 1, tmp_path)[1] == []
