"""Judge peak memory: exact where a meter counts, with an allowance where an allocator decides."""

from __future__ import annotations

from harness.record import COMPONENTS, TrainMemory
from harness.tables.compare.comparison import Verdict
from harness.tables.format import UNITS, component

#: Noise of a peak by CUDA's allocator: a share, and bytes.
CUDA_SHARE, CUDA_BYTES = 0.005, 8 << 20
#: Meters that count the bytes of tensors, and so are repeatable to the byte.
EXACT = ("live", "simulated")


def judge(meter: str, base: int, candidate: int) -> Verdict:
    """Return the verdict on a peak in bytes: with an exact meter any increase is a regression.

    With others one beyond 0.5 % + 8 MiB is. A smaller peak is an improvement by the same measure.
    """
    slack = 0.0 if meter in EXACT else min(base, candidate) * CUDA_SHARE + CUDA_BYTES
    if candidate > base + slack:
        return "regression"
    return "improvement" if candidate < base - slack else "ok"


def cause(
    base: int, candidate: int, before: TrainMemory | None = None, after: TrainMemory | None = None
) -> str:
    """Write how a peak moved and by which parts, the largest first: `peak +412.0 MiB: optimizer +410.0, …`.

    All numbers are in the unit of the largest change.
    """
    moved: dict[str, int] = {}
    if before is not None and after is not None:
        moved = {component(name): getattr(after, name) - getattr(before, name) for name in COMPONENTS}
    parts = sorted(((n, size) for n, size in moved.items() if size), key=lambda part: -abs(part[1]))
    largest = max(abs(size) for size in (candidate - base, *moved.values()))
    unit, size = next((pair for pair in UNITS if largest >= pair[1]), ("bytes", 1))
    peak = f"peak {_signed(candidate - base, size)} {unit}" if candidate != base else "peak unchanged"
    changes = ", ".join(f"{name} {_signed(part, size)}" for name, part in parts)
    beside = f" ({unit})" if candidate == base and changes else ""
    return f"{peak}: {changes}{beside}" if changes else peak


def _signed(change: int, size: int) -> str:
    """Write a change in units of `size` bytes, in bytes where it would read as zero."""
    if size == 1 or abs(change) < 0.05 * size:
        return f"{change:+,}" + (" bytes" if size > 1 else "")
    text = f"{change / size:+,.1f}"
    return text.removesuffix(".0")
