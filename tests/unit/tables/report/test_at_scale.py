"""The columns of a report that forecast a large model."""

from __future__ import annotations

from typing import Any

import pytest

from harness import suite as suites
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


def test_each_row_stands_beside_the_baseline() -> None:
    labels = ["lora", "full", "untrained", "unknown"]
    columns = list(FOUND.columns(labels))
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
    assert FOUND.line("lora") == {"at_scale_peak_bytes": 20 * GIB, "at_scale_tokens_per_s": 15_000.0}
    assert set(FOUND.line("unknown").values()) == {None}


def test_without_a_baseline_there_are_no_ratios() -> None:
    alone = AtScale("m", "s", "d", {"lora": Forecast(GIB, 1.0)})
    assert [column.cells for column in alone.columns(["lora"]) if column.name == "ratio"] == [
        (DASH,),
        (DASH,),
    ]


@pytest.mark.parametrize(
    ("gib", "said"), [(1, "24"), (23, "24"), (23.01, "48"), (47, "48"), (79, "80"), (79.5, "> 80")]
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
    assert found.rows == {
        "welore": Forecast(5, 7.0),
        "untrained": Forecast(),
        "lora": Forecast(5, None, "no rate"),
        "galore": Forecast(None, None, "it failed"),
    }
