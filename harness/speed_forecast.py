"""Forecast the speed of training and of scoring text from operations and the rates of a device. No torch.

Each operation takes the longer of computing and of moving its bytes, plus the latency of a kernel (the
roofline model, Williams, Waterman and Patterson 2009). One operation runs at a time, none is fused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.devices import DECOMPOSITIONS, DeviceProfile, at
from harness.errors import UnsupportedError
from harness.forecast import MemoryReport, Scoring, Work

#: Parts of an update in a forecast; a refresh counts with what it takes beyond an update without.
TIMED = ("forward", "backward", "update", "refresh")


@dataclass(frozen=True)
class SpeedForecast:
    """The forecast time of a mean update, with refreshes as often as they come, or of scoring one batch.

    `parts` are seconds by part, `operations` by operation and dtype, the costliest first. `mfu` is the share
    of the peak that the dense model's arithmetic takes, of full training (6 operations for each weight and
    token) or of a forward pass (2), `hfu` that of all operations counted; None where the profile has no peak
    for the dtype.
    """

    tokens: int
    parts: dict[str, float]
    operations: dict[str, float]
    mfu: float | None
    hfu: float | None

    @property
    def step_s(self) -> float:
        """Return the seconds of a mean update, or of a batch that is scored."""
        return sum(self.parts.values())

    @property
    def tokens_per_s(self) -> float:
        """Return tokens per second: trained on, padding included, or scored."""
        return self.tokens / self.step_s


def forecast_speed(report: MemoryReport, device: DeviceProfile, tokens: int, dtype: str) -> SpeedForecast:
    """Forecast training by `tokens` per update; UnsupportedError where a rate or the period is not known."""
    return _forecast(_mean_update(report), report.flops_per_token, device, tokens, dtype, TIMED)


def forecast_scoring(scoring: Scoring, device: DeviceProfile, dtype: str) -> SpeedForecast:
    """Forecast how fast text is scored, a batch at a time; UnsupportedError where a rate is not known."""
    passes = ((work, float(work.count), False) for work in scoring.work)
    return _forecast(passes, scoring.flops_per_token, device, scoring.tokens, dtype, ("forward",))


def _forecast(
    works: Iterable[tuple[Work, float, bool]],
    flops_per_token: float | None,
    device: DeviceProfile,
    tokens: int,
    dtype: str,
    timed: Sequence[str],
) -> SpeedForecast:
    """Add up work, given with how often it comes and whether a refresh adds it, by the parts `timed`."""
    parts: dict[str, float] = dict.fromkeys(timed, 0.0)
    operations: dict[str, float] = {}
    flops = 0.0
    for work, times, refreshes in works:
        seconds = times * seconds_of(work, device)
        parts["refresh" if refreshes else work.part] += seconds
        name = f"{work.operation if work.kind in ('product', 'memory') else work.kind} {work.dtype}"
        operations[name] = operations.get(name, 0.0) + seconds
        flops += times * work.flops
    peak_flops_s = device.peak[dtype] * 1e12 * sum(parts.values()) if dtype in device.peak else None
    own = None if flops_per_token is None else flops_per_token * tokens
    return SpeedForecast(
        tokens=tokens,
        parts=parts,
        operations=dict(sorted(operations.items(), key=lambda item: -item[1])),
        mfu=own / peak_flops_s if own and peak_flops_s else None,
        hfu=flops / peak_flops_s if peak_flops_s else None,
    )


def _mean_update(report: MemoryReport) -> Iterator[tuple[Work, float, bool]]:
    """Yield the work of a mean update, how often each comes, and whether a refresh adds it.

    A refresh adds its own update and takes away a plain one, once in a period.
    """
    for work in report.work:
        yield work, work.count, False
    if report.refresh_work:
        period = _period(report)
        for sign, works in ((1, report.refresh_work), (-1, report.work)):
            for work in works:
                yield work, sign * work.count / period, True


def _period(report: MemoryReport) -> int:
    """Return the updates that a refresh is spread over; UnsupportedError where the method names none."""
    if report.period is None:
        raise UnsupportedError(
            "how often it refreshes is not known: its caps give neither period nor mean_period"
        )
    return report.period


def seconds_of(work: Work, device: DeviceProfile) -> float:
    """Return the seconds that one call takes; UnsupportedError where the device has no rate for it."""
    moving = work.bytes / (at(device.bandwidth, work.bytes) * 1e9) if work.bytes else 0.0
    computing = work.flops / (_rate(work, device) * 1e12) if work.flops else 0.0
    seconds = max(moving, computing) + device.latency_us * 1e-6
    if work.new_bytes and device.new_memory:
        seconds += work.new_bytes / (at(device.new_memory, work.new_bytes) * 1e9)
    return seconds


def _rate(work: Work, device: DeviceProfile) -> float:
    """Return the rate of a computation in TFLOP/s."""
    if work.kind in DECOMPOSITIONS:
        if work.kind not in device.decompositions:
            raise UnsupportedError(f"{device.title} has no rate for {work.kind}")
        return at(device.decompositions[work.kind], work.size)
    curves = device.attention_backward if work.kind == "attention backward" else device.attention
    curves = device.products if work.kind == "product" else curves
    if work.dtype not in curves:
        known = ", ".join(curves)
        raise UnsupportedError(
            f"{device.title} has no rate for {work.operation} in {work.dtype} (it has: {known})"
        )
    return at(curves[work.dtype], work.size)
