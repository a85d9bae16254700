"""A calibration: whole, plausible, and readable again. Rates are measured elsewhere, never in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli.devices import as_yaml
from harness.devices import DECOMPOSITIONS, profile
from harness.engine.measure import calibration


@pytest.fixture
def quick(monkeypatch: Any) -> None:
    for name, value in {
        "SPAN_S": 0.0,
        "ROUNDS": 1,
        "SMALL_CALLS": 2,
        "SIZES": {"cpu": calibration.Sizes([4, 16], 16, [8], [8], [1 << 13, 1 << 15], 1 << 16)},
    }.items():
        monkeypatch.setattr(calibration, name, value)


@pytest.mark.usefixtures("quick")
def test_a_calibration_is_a_profile(tmp_path: Path) -> None:
    said: list[str] = []
    found = calibration.calibrate(torch.device("cpu"), "this one", 2.0, said.append)
    assert [side for side, _ in found.products["float32"]] == [4, 16]
    assert set(found.products) == set(found.attention) == set(found.attention_backward)
    assert set(found.decompositions) == set(DECOMPOSITIONS)
    assert [size for size, _ in found.bandwidth] == [1 << 13, 1 << 15]
    assert found.new_memory
    assert found.latency_us > 0
    assert not found.assumed
    assert said
    path = tmp_path / "cpu.yaml"
    path.write_text(as_yaml(found.model_dump(mode="json", exclude_none=True)))
    again = profile(str(path))
    assert again.title == "this one"
    for (size, rate), (same, near) in zip(found.bandwidth, again.bandwidth, strict=True):
        assert (size, rate) == (same, pytest.approx(near, rel=1e-3))


def test_probes_go_through_places_all_over_a_buffer() -> None:
    buffer = torch.arange(1000)
    found = calibration.places(buffer, 5, 10)
    assert len(found) == 20
    assert all(place.shape == (5, 10) for place in found)
    firsts = [int(place[0, 0]) for place in found]
    assert firsts == list(range(0, 1000, 50))
    assert len(calibration.places(buffer, 2)) == calibration.MOST_PLACES
    assert len(calibration.places(buffer, 600)) == 1


def test_the_arguments_of_a_call_lie_apart_and_those_of_the_next_elsewhere() -> None:
    seen: list[tuple[int, ...]] = []

    def record(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
        seen.append((int(first[0]), int(second[0]), int(out[0])))

    place = calibration.places(torch.arange(100), 25)
    probe = calibration._far(record, place, place, calibration.places(torch.arange(1000, 1100), 25))
    for _ in range(5):
        probe()
    assert seen == [(0, 50, 1000), (25, 75, 1025), (50, 0, 1050), (75, 25, 1075), (0, 50, 1000)]


def test_a_probe_counts_by_the_median_over_all_rounds(monkeypatch: Any) -> None:
    times = iter([0.0, 1.0, 1.0, 1.5, 2.0, 5.0, 5.0, 5.5, 6.0, 8.0, 8.0, 9.5])
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(calibration, "SPAN_S", 0.0)
    monkeypatch.setattr(calibration, "ROUNDS", 3)
    done: list[str] = []
    first, second = ("a", "", 0, 0), ("b", "", 0, 0)
    probes = {first: lambda: done.append("a"), second: lambda: done.append("b")}
    found = calibration.medians(torch.device("cpu"), probes, lambda _: None)
    assert found == {first: 2.0, second: 0.5}  # of 1, 3 and 2, and of 0.5, 0.5 and 1.5
    assert "".join(done) == "aabbabab"  # each is warmed up once, and all take turns
