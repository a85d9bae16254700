"""The page of WeLore's claim: ratios by hand from a made-up plan, and what it says of them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.studies import claims as study
from harness import devices

H200, A100 = (devices.profile(name) for name in study.DEVICES)
GIB = 2**30


def plan_of(peaks: dict[str, float], speeds: dict[str, float], hfu: dict[str, float]) -> dict[str, Any]:
    """Return a plan with the same three values of a label in every setting; 1 for labels without."""
    return {
        "rows": [
            {
                "config_id": run.config_id,
                "peak_allocated_bytes": peaks.get(run.name, 1),
                "speed": [
                    {
                        "device": H200.title,
                        "tokens_per_s": speeds.get(run.name, 1),
                        "hfu": hfu.get(run.name, 1),
                    },
                    {"device": A100.title, "tokens_per_s": 1, "hfu": 1},
                ],
            }
            for run in study.runs()
        ]
    }


def test_ratios_are_those_of_one_setting() -> None:
    made = plan_of(
        {"full": 10, study.METHOD: 6}, {"full": 100, study.METHOD: 280}, {"full": 0.5, study.METHOD: 0.35}
    )
    found = list(study.compared(made))
    assert len(found) == 5 * 2 * 5  # settings, with and without checkpointing, baselines
    full = [each for each in found if each.baseline == "full"]
    assert len({(each.batch, each.length, each.checkpointing) for each in full}) == 10
    for each in full:
        assert each.memory == pytest.approx(0.6)
        assert each.speed == pytest.approx({H200.title: 2.8, A100.title: 1})
        # operations per token: the share of the peak, over tokens per second
        assert each.operations == pytest.approx((0.5 / 100) / (0.35 / 280))
        assert each.memory_holds
        assert each.speed_holds  # within a tenth of 3
    float32 = next(each for each in found if each.baseline == "full, all in float32")
    share = H200.peak["float32"] / H200.peak["bfloat16"]
    assert float32.operations == pytest.approx(1 * share / (0.35 / 280))


@pytest.mark.parametrize(
    ("memory", "speed", "holds"), [(0.67, 2.69, (False, False)), (0.65, 2.71, (True, True))]
)
def test_a_claim_holds_within_a_tenth(memory: float, speed: float, holds: tuple[bool, bool]) -> None:
    each = study.Compared("full", 4, 1024, False, memory, 2.0, {"a": 1.0, "b": speed})
    assert (each.memory_holds, each.speed_holds) == holds


def test_the_page_counts_where_the_claim_holds() -> None:
    found = [
        study.Compared("full", 4, 1024, False, 0.5, 1.9, {H200.title: 1.8}),
        study.Compared("full", 1, 512, True, 0.7, 2.1, {H200.title: 1.5}),
        study.Compared("float32", 4, 1024, False, 0.3, 2.0, {H200.title: 9.0}),
    ]
    text = study.page(found)
    assert (
        f"- \u00d70.50 of the memory of full fine-tuning, at a speed of \u00d71.80 on {H200.title};" in text
    )
    assert "about memory holds in 2 of 3 comparisons, where full fine-tuning is `full`; `float32`." in text
    assert "about throughput holds in 1 of 3 comparisons, where full fine-tuning is `float32`." in text
    assert "about both together holds in 1 of 3" in text
    assert "between \u00d71.90 and \u00d72.10" in text
    assert (
        "| full | 1 \u00d7 512 | yes | \u00d70.70 | \u00d72.10 | \u00d71.50 | does not fit | neither |"
        in text
    )
    assert "| float32 | 4 \u00d7 1,024 | no | \u00d70.30 | \u00d72.00 | \u00d79.00 | does not fit |" in text
