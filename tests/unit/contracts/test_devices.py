"""Profiles of devices: what ships is whole, and what is wrong in a file is said."""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config import TrainConfig
from harness.devices import DECOMPOSITIONS, DTYPES, FOLDER, DeviceProfile, at, names, profile
from harness.errors import UserError
from harness.validation import validate


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
    assert set(allowed) <= set(profile("h200").peak) <= set(DTYPES)


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
        ("bandwidth", [[0, 1]], r"bandwidth\.0\.0: give a number of at least 1e-09, not 0"),
        ("bandwidth", [[1, 2, 3]], "bandwidth"),
        ("latency_us", -1, "at least 0"),
        ("latency_us", "5", "latency_us"),
        ("peak", {"bfloat16": 0}, r"peak\.bfloat16: give a number of at least 1e-09, not 0"),
        ("peak", {"bf16": 312}, r"yaml:\d+: peak\.bf16: unknown dtype; did you mean 'bfloat16'"),
        ("products", {"fp32": [[1, 1]]}, r"products\.fp32: unknown dtype; did you mean 'float32'"),
        ("attention", {"": [[1, 1]]}, "unknown dtype; known: "),
        ("decompositions", {"lu": [[1, 1]]}, r"decompositions\.lu: give 'svd', 'eigh' or 'qr', not 'lu'"),
        ("title", "", "title: give the name of the device, not an empty one"),
        ("title", " ", "title: give the name of the device, not an empty one"),
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


def figures(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all numbers of a profile."""
    if isinstance(content, dict | list):
        for key, item in content.items() if isinstance(content, dict) else enumerate(content):
            yield from figures(item, (*path, key))
    elif isinstance(content, float | int):
        yield path


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_figure_is_infinite_or_undefined(value: float) -> None:
    content = {**yaml.safe_load((FOLDER / "h100.yaml").read_text()), "new_memory": [[1, 1]]}
    paths = list(figures(content))
    assert {path[0] for path in paths} == DeviceProfile.model_fields.keys() - {"title", "sources", "assumed"}
    for path in paths:
        changed = copy.deepcopy(content)
        functools.reduce(operator.getitem, path[:-1], changed)[path[-1]] = value
        with pytest.raises(UserError, match=f"^mine: {'.'.join(map(str, path))}: give a finite number, not "):
            read_as(changed)


@pytest.mark.parametrize("value", [1e-300, 1e300])
@pytest.mark.parametrize(
    "key", ["bandwidth", "new_memory", "products", "attention", "decompositions", "peak"]
)
def test_no_figure_makes_a_forecast_overflow(value: float, key: str) -> None:
    """A rate of 1e300 TFLOP/s would be infinite in FLOP/s, and no time at all pass."""
    content = yaml.safe_load((FOLDER / "h100.yaml").read_text())
    content[key] = {
        "bandwidth": [[1, value]],
        "new_memory": [[1, value]],
        "decompositions": {"svd": [[1, value]]},
        "peak": {"float32": value},
    }.get(key, {"float32": [[1, value]]})
    with pytest.raises(
        UserError, match=f"^mine: {key}.*: give a number of at (least 1e-09|most 1e[+]15), not "
    ):
        read_as(content)


def read_as(content: dict[str, Any]) -> DeviceProfile:
    return validate(DeviceProfile, content, "mine")


@pytest.mark.parametrize(
    ("given", "said"), [("h20", "did you mean 'h200'"), ("mine.yaml", "neither"), (".", "neither")]
)
def test_what_is_no_profile_is_refused(given: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        profile(given)
