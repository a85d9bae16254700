"""Profiles of devices: what ships is whole, and what is wrong in a file is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config import TrainConfig
from harness.devices import DECOMPOSITIONS, FOLDER, at, names, profile
from harness.errors import UserError


def test_the_devices_that_ship_are_the_ones_promised() -> None:
    assert names() == ["a100-80gb", "h100", "h200", "rtx3090", "rtx4090"]


@pytest.mark.parametrize("name", names())
def test_a_profile_that_ships_can_forecast_every_dtype_and_says_its_sources(name: str) -> None:
    found = profile(name)
    for dtype in ("float32", "bfloat16"):
        assert dtype in found.products
        assert dtype in found.attention
        assert dtype in found.attention_backward
        assert max(rate for _, rate in found.products[dtype]) <= found.peak[dtype]
    assert set(found.decompositions) == set(DECOMPOSITIONS)
    assert {"peak", "memory_gib", "products", "bandwidth", "decompositions", "latency_us"} <= set(
        found.sources
    )
    assert found.assumed


def test_dtypes_of_runs_are_those_of_profiles() -> None:
    allowed = TrainConfig.model_fields["dtype"].annotation.__args__  # type: ignore[union-attr]
    assert set(allowed) <= set(profile("h200").peak)


def test_a_curve_is_linear_in_logarithms_and_constant_beyond_its_points() -> None:
    curve = [(10.0, 1.0), (1000.0, 100.0)]
    assert at(curve, 5) == at(curve, 10) == 1.0
    assert at(curve, 100) == pytest.approx(10.0)
    assert at(curve, 1000) == pytest.approx(100.0)
    assert at(curve, 10**9) == 100.0
    assert at([(7.0, 3.0)], 7) == at([(7.0, 3.0)], 1) == 3.0


def test_a_profile_of_one_s_own_may_be_named_yaml_or_yml(tmp_path: Path) -> None:
    for name in ("mine.yaml", "mine.yml"):
        (tmp_path / name).write_bytes((FOLDER / "h100.yaml").read_bytes())
        assert profile(str(tmp_path / name)) == profile("h100")
    (tmp_path / "mine.json").write_bytes((FOLDER / "h100.yaml").read_bytes())
    with pytest.raises(UserError, match="neither a device profile nor a file of one"):
        profile(str(tmp_path / "mine.json"))


def test_points_may_be_written_in_any_order(tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "h100.yaml").read_text())
    content["bandwidth"] = [[2000, 20], [1000, 10]]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert profile(str(tmp_path / "mine.yaml")).bandwidth == [(1000, 10), (2000, 20)]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bandwidth", [], "bandwidth"),
        ("bandwidth", [[0, 1]], "above 0"),
        ("bandwidth", [[1, 2, 3]], "bandwidth"),
        ("latency_us", -1, "at least 0"),
        ("latency_us", "5", "latency_us"),
        ("peak", {"bfloat16": 0}, "above 0"),
        ("speed", 1, "speed"),
    ],
)
def test_a_wrong_figure_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    content = yaml.safe_load((FOLDER / "h100.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, key: value}))
    with pytest.raises(UserError, match=said) as refused:
        profile(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"), [("h20", "did you mean 'h200'"), ("mine.yaml", "neither"), (".", "neither")]
)
def test_what_is_no_profile_is_refused(given: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        profile(given)
