"""The columns of a report that forecast a large model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from harness import suite as suites
from harness.tables.aggregate import Row
from harness.tables.format import DASH
from harness.tables.report.at_scale import GIB, AtScale, Forecast, of_plan, smallest

TIMES = "\N{MULTIPLICATION SIGN}"
FOUND = AtScale(
    "llama-2-7b",
    f"1 {TIMES} 2,048 tokens in bfloat16",
    "NVIDIA H200",
    {
        "full": Forecast(50 * GIB, 10_000.0),
        "lora": Forecast(20 * GIB, 15_000.0),
        "untrained": Forecast(),
        "odd": Forecast(None, None, "it does not do that"),
    },
    "full",
)


def row_of(label: str, **settings: Any) -> Row:
    """A row as records of these settings make it."""
    record: Any = SimpleNamespace(label=label, config={"method": [], **settings})
    return Row("", {}, [record])


def test_each_row_stands_beside_the_baseline() -> None:
    rows = [row_of(label) for label in ("lora", "full", "untrained", "unknown")]
    columns = list(FOUND.columns(rows, [None] * len(rows)))
    assert [column.name for column in columns] == [*("7b GiB", "ratio", "fits", "7b tokens/s", "ratio")]
    assert [column.cells for column in columns] == [
        ("20.0", "50.0", DASH, DASH),
        (f"{TIMES}0.400", f"{TIMES}1.000", DASH, DASH),
        ("24", "80", DASH, DASH),
        ("15,000", "10,000", DASH, DASH),
        (f"{TIMES}1.500", f"{TIMES}1.000", DASH, DASH),
    ]
    assert "forecast, not measured" in FOUND.caption
    assert "NVIDIA H200" in FOUND.caption
    assert FOUND.notes() == ["odd: no forecast at scale: it does not do that"]
    assert FOUND.line(row_of("lora")) == {"at_scale_peak_bytes": 20 * GIB, "at_scale_tokens_per_s": 15_000.0}
    assert set(FOUND.line(row_of("unknown")).values()) == {None}


def test_without_a_baseline_there_are_no_ratios() -> None:
    alone = AtScale("m", "s", "d", {"lora": Forecast(GIB, 1.0)})
    assert [column.cells for column in alone.columns([row_of("lora")], [None]) if column.name == "ratio"] == [
        (DASH,),
        (DASH,),
    ]


@pytest.mark.parametrize(
    ("gib", "said"), [(1, "24"), (22.6, "24"), (22.61, "48"), (46.5, "48"), (78.1, "80"), (78.2, "> 80")]
)
def test_a_row_fits_with_a_gibibyte_to_spare(gib: float, said: str) -> None:
    assert smallest(int(gib * GIB)) == said


def test_a_plan_is_read_with_its_reasons() -> None:
    suite = suites.load("compressed").at_scale()
    assert suite is not None

    def row(label: str, **changes: Any) -> dict[str, Any]:
        speed = [{"device": "H", "tokens_per_s": 7.0}]
        base = {"label": label, "steps": 80, "peak_allocated_bytes": 5, "speed": speed, "reason": None}
        return {**base, **changes}

    rows = [
        row("welore"),
        row("untrained", steps=None, speed=[]),
        row("lora", speed=[{"device": "H", "reason": "no rate"}]),
        row("galore", peak_allocated_bytes=None, speed=[], reason="it failed"),
    ]
    found = of_plan({"rows": rows}, suite)
    assert (found.model, found.device, found.baseline) == ("llama-2-7b", "H", "welore")
    assert found.setting == f"1 {TIMES} 2,048 tokens in bfloat16"
    assert not found.scoring, "one row trains"
    assert found.rows == {
        "welore": Forecast(5, 7.0),
        "untrained": Forecast(),
        "lora": Forecast(5, None, "no rate"),
        "galore": Forecast(None, None, "it failed"),
    }


def test_where_no_row_trains_the_columns_are_those_of_scoring_and_say_so(tmp_path: Path) -> None:
    scale = {"base": {"model": {"source": "shape", "name": "llama-2-7b"}, "train.batch": 2}}
    rows = [{"label": "dense", "method": "full"}, {"label": "half", "method": "uniform"}]
    base = {"model": {"source": "embedded"}, "train.stage": "compress"}
    content = {"suite": "made", "base": base, "rows": rows, "baseline": "dense", "at_scale": scale}
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump(content))
    suite = suites.load(path).at_scale()
    assert suite is not None

    def row(label: str, gib: int, speed: float) -> dict[str, Any]:
        speeds = [{"device": "H", "tokens_per_s": speed}]
        scored = {"peak_allocated_bytes": gib * GIB, "speed": speeds}
        nothing = {"steps": None, "peak_allocated_bytes": 99 * GIB, "speed": [], "reason": None}
        return {"label": label, **nothing, "scoring": scored}

    found = of_plan({"rows": [row("dense", 14, 100.0), row("half", 7, 150.0)]}, suite)
    assert found.scoring
    assert (found.device, found.rows["half"]) == ("H", Forecast(7 * GIB, 150.0))
    columns = list(found.columns([row_of("dense"), row_of("half")], [None, None]))
    assert [column.name for column in columns] == [
        *("7b scoring GiB", "ratio", "fits", "7b scoring tokens/s", "ratio")
    ]
    assert [column.cells[1] for column in columns] == ["7.0", f"{TIMES}0.500", "24", "150", f"{TIMES}1.500"]
    assert "peak of scoring text (forward only, without gradients)" in found.caption
    assert "scoring text" in found.line_below
    assert found.line(row_of("half")) == {
        "at_scale_scoring_peak_bytes": 7 * GIB,
        "at_scale_scoring_tokens_per_s": 150.0,
    }
    failed = {**row("half", 7, 1.0), "reason": "it failed"}
    del failed["scoring"]
    assert of_plan({"rows": [failed]}, suite).rows == {"half": Forecast(None, None, "it failed")}


def test_rows_of_one_label_have_forecasts_of_their_own(tmp_path: Path) -> None:
    """Told apart by the settings that differ at scale, not by those that are the same there."""
    content = {
        "suite": "made",
        "base": {"method": "full", "label": "x", "model": {"source": "embedded"}},
        "matrix": {"train.batch": [1, 8], "train.dtype": ["float32", "bfloat16"]},
        "at_scale": {"base": {"model": {"source": "shape", "name": "nano"}, "train.dtype": "bfloat16"}},
    }
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump(content))
    suite = suites.load(path).at_scale()
    assert suite is not None
    names = list(suite.names(suite.runs).values())
    assert len(set(names)) == len(suite.runs) == 2
    made = [
        {"label": name, "steps": 1, "peak_allocated_bytes": size, "speed": [], "reason": None}
        for name, size in zip(names, (GIB, 2 * GIB), strict=True)
    ]
    found = of_plan({"rows": made}, suite)
    for batch, size in ((1, GIB), (8, 2 * GIB)):
        for dtype in ("float32", "bfloat16"):
            assert found.of(row_of("x", train={"batch": batch, "dtype": dtype})).peak_bytes == size
    assert found.of(row_of("x", train={"batch": 4})) == Forecast()


def test_rows_that_differ_in_their_methods_alone_have_none_where_it_is_not_the_same(tmp_path: Path) -> None:
    content = {
        "suite": "made",
        "base": {"label": "x", "model": {"source": "embedded"}},
        "matrix": {"method": ["full", {"lora": {"rank": 4}}]},
        "at_scale": {"base": {"model": {"source": "shape", "name": "nano"}}},
    }
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump(content))
    suite = suites.load(path).at_scale()
    assert suite is not None
    names = list(suite.names(suite.runs).values())
    assert len(set(names)) == 2
    assert all(name.startswith("x [") for name in names)

    def planned(*sizes: int) -> AtScale:
        rows = [
            {"label": name, "steps": 1, "peak_allocated_bytes": size, "speed": [], "reason": None}
            for name, size in zip(names, sizes, strict=True)
        ]
        return of_plan({"rows": rows}, suite)

    assert planned(GIB, 2 * GIB).of(row_of("x")) == Forecast()
    assert planned(GIB, GIB).of(row_of("x")) == Forecast(GIB)
    assert planned(GIB, 2 * GIB).notes() == [
        "x: no forecast at scale: no setting tells the rows of this label apart; give each its own"
    ]
