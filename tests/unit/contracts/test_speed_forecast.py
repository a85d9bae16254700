"""The time of an update from its operations: every rule by hand, on rates that are round numbers."""

from __future__ import annotations

from typing import Any

import pytest

from harness.devices import DeviceProfile
from harness.errors import UnsupportedError
from harness.forecast import MemoryReport, Peak, Scoring, Work
from harness.speed_forecast import forecast_scoring, forecast_speed, seconds_of

MILLION = 10**6
#: 1 TFLOP/s for products, 2 for attention, 0.5 backward, 0.1 for decompositions; 1 GB/s.
DEVICE = DeviceProfile.model_validate(
    {
        "title": "round",
        "memory_gib": 1,
        "peak": {"float32": 2},
        "products": {"float32": [[8, 0.1], [800, 1]]},
        "attention": {"float32": [[64, 2]]},
        "attention_backward": {"float32": [[64, 0.5]]},
        "decompositions": {"svd": [[8, 0.1]], "eigh": [[8, 0.2]], "qr": [[8, 0.4]]},
        "bandwidth": [[1000, 1]],
        "latency_us": 3,
        "sources": {},
    }
)


def work(**settings: Any) -> Work:
    base = {"part": "forward", "kind": "memory", "operation": "add", "dtype": "float32", "size": 0}
    return Work.model_validate({**base, "count": 1, "flops": 0, "bytes": 0, "new_bytes": 0, **settings})


def report(plain: list[Work], **settings: Any) -> MemoryReport:
    return MemoryReport(
        config_id="x",
        granularity=1,
        parameters_total=1,
        parameters_trainable=1,
        phase_peak_allocated_bytes={},
        work=plain,
        **settings,
    )


@pytest.mark.parametrize(
    ("settings", "microseconds"),
    [
        ({}, 3),
        ({"bytes": 5000}, 5 + 3),
        ({"kind": "product", "size": 800, "flops": 7 * MILLION, "bytes": 5000}, 7 + 3),  # it computes
        ({"kind": "product", "size": 800, "flops": 7 * MILLION, "bytes": 9000}, 9 + 3),  # it waits for memory
        ({"kind": "product", "size": 8, "flops": 7 * MILLION}, 70 + 3),
        ({"kind": "product", "size": 80, "flops": MILLION}, 10**0.5 + 3),  # halfway, by logarithms
        ({"kind": "attention", "size": 64, "flops": 4 * MILLION}, 2 + 3),
        ({"kind": "attention backward", "size": 64, "flops": 4 * MILLION}, 8 + 3),
        ({"kind": "svd", "size": 8, "flops": MILLION}, 10 + 3),
        ({"kind": "eigh", "size": 8, "flops": MILLION}, 5 + 3),
        ({"kind": "qr", "size": 8, "flops": MILLION}, 2.5 + 3),
        ({"kind": "svd", "size": 8, "flops": MILLION, "dtype": "bfloat16"}, 10 + 3),
        ({"bytes": 6000, "new_bytes": 2000}, 6 + 3),  # a device that keeps freed memory
    ],
)
def test_seconds_of_one_call(settings: dict[str, Any], microseconds: float) -> None:
    assert seconds_of(work(**settings), DEVICE) * 1e6 == pytest.approx(microseconds)


def test_new_memory_costs_where_the_system_clears_it() -> None:
    device = DEVICE.model_copy(update={"new_memory": [(1000, 0.5)]})
    assert seconds_of(work(bytes=6000, new_bytes=2000), device) * 1e6 == pytest.approx(6 + 4 + 3)


def test_a_dtype_without_a_rate_is_said() -> None:
    with pytest.raises(UnsupportedError, match=r"round has no rate for mm in int8 \(it has: float32\)"):
        seconds_of(work(kind="product", operation="mm", size=8, flops=1, dtype="int8"), DEVICE)


def test_an_update_is_the_sum_of_its_calls() -> None:
    plain = [
        work(bytes=997_000, count=2),  # 1 ms each
        work(part="backward", kind="product", operation="mm", size=800, flops=1997 * MILLION),
        work(part="update", bytes=497_000, operation="mul"),
    ]
    found = forecast_speed(report(plain, flops_per_token=4e6), DEVICE, tokens=450, dtype="float32")
    assert found.parts == pytest.approx({"forward": 2e-3, "backward": 2e-3, "update": 0.5e-3, "refresh": 0})
    assert found.step_s == pytest.approx(4.5e-3)
    assert found.tokens_per_s == pytest.approx(100_000)
    assert list(found.operations) == ["add float32", "mm float32", "mul float32"]
    assert found.mfu == pytest.approx(450 * 4e6 / 4.5e-3 / 2e12)
    assert found.hfu == pytest.approx(1997e6 / 4.5e-3 / 2e12)


def test_scoring_is_the_sum_of_its_calls_per_token_that_it_predicts() -> None:
    calls = [
        work(bytes=997_000, count=2),  # 1 ms each
        work(kind="product", operation="mm", size=800, flops=1997 * MILLION),  # 2 ms
    ]
    scored = Scoring(
        tokens=100,
        peak_allocated_bytes=3,
        weights_bytes=1,
        buffers_bytes=1,
        transient_bytes=1,
        peak=Peak(part="forward", operation="mm", groups={}),
        work=calls,
        flops_per_token=4e6,
    )
    found = forecast_scoring(scored, DEVICE, "float32")
    assert found.parts == pytest.approx({"forward": 4e-3})
    assert found.tokens_per_s == pytest.approx(25_000)
    assert found.mfu == pytest.approx(100 * 4e6 / 4e-3 / 2e12)
    assert found.hfu == pytest.approx(1997e6 / 4e-3 / 2e12)
    assert list(found.operations) == ["add float32", "mm float32"]


def test_a_refresh_is_spread_over_its_period() -> None:
    plain = [work(bytes=997_000), work(part="update", bytes=997_000)]
    refresh = [*plain, work(part="update", kind="svd", operation="_linalg_svd", size=8, flops=4_999_700_000)]
    found = forecast_speed(report(plain, refresh_work=refresh, period=100), DEVICE, 1000, "float32")
    assert found.parts == pytest.approx({"forward": 1e-3, "backward": 0, "update": 1e-3, "refresh": 0.5e-3})
    assert found.tokens_per_s == pytest.approx(100 * 1000 / (99 * 2e-3 + 52e-3))
    assert found.operations["svd float32"] == pytest.approx(0.5e-3)


def test_a_refresh_in_every_update_is_its_own() -> None:
    refresh = [work(part="update", bytes=997_000)]
    found = forecast_speed(report(refresh, refresh_work=refresh, period=1), DEVICE, 1000, "float32")
    assert found.step_s == pytest.approx(1e-3)


def test_refreshes_without_any_period_have_no_speed() -> None:
    refresh = [work(part="update", bytes=997_000)]
    with pytest.raises(UnsupportedError, match="neither period nor mean_period"):
        forecast_speed(report(refresh, refresh_work=refresh), DEVICE, 1000, "float32")


def test_a_decomposition_without_a_rate_is_said() -> None:
    device = DEVICE.model_copy(update={"decompositions": {}})
    with pytest.raises(UnsupportedError, match="round has no rate for svd"):
        seconds_of(work(kind="svd", size=8, flops=1), device)


def test_utilisation_needs_a_peak() -> None:
    found = forecast_speed(report([work()], flops_per_token=1.0), DEVICE, 1, "bfloat16")
    assert found.mfu is None
    assert found.hfu is None
