"""Measure the rates of this machine that a forecast of speed needs: the profile of a device.

Each rate is the median of repeats that take at least `SPAN_S` together, after one to warm up. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.devices import DECOMPOSITIONS, Decomposition, DeviceProfile
from harness.engine.measure.flops import decomposition_flops

SPAN_S, LEAST_REPEATS = 0.3, 5
SIDES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: The two other sides of a product are this long, at least.
OTHER_SIDES = 1024
LENGTHS = (64, 256, 1024)
DECOMPOSED = (32, 64, 128, 256, 512)
BYTES = tuple(1 << power for power in range(13, 29, 2))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DECOMPOSE: dict[Decomposition, Callable[[Tensor], object]] = {
    "svd": lambda matrix: torch.linalg.svd(matrix, full_matrices=False),
    "eigh": torch.linalg.eigh,
    "qr": torch.linalg.qr,
}
Points = list[tuple[float, float]]
OnProgress = Callable[[str], None]


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the median seconds of a piece of work on a device."""
    work()
    taken: list[float] = []
    while len(taken) < LEAST_REPEATS or sum(taken) < SPAN_S:
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def calibrate(device: torch.device, title: str, memory_gib: float, on_progress: OnProgress) -> DeviceProfile:
    """Measure all rates of a device, in about a minute."""
    products = {}
    for name in DTYPES:
        on_progress(f"products of {name} matrices")
        products[name] = list(_products(device, DTYPES[name]))
    attention, backward = {}, {}
    for name in DTYPES:
        on_progress(f"attention in {name}")
        points = list(_attention(device, DTYPES[name]))
        attention[name] = [(length, forward) for length, forward, _ in points]
        backward[name] = [(length, rate) for length, _, rate in points]
    decompositions = {}
    for kind in DECOMPOSITIONS:
        on_progress(f"decompositions: {kind}")
        decompositions[kind] = list(_decompositions(device, kind))
    on_progress("memory")
    bandwidth, new_memory = _memory(device)
    return DeviceProfile(
        title=title,
        memory_gib=memory_gib,
        peak={name: max(rate for _, rate in points) for name, points in products.items()},
        products=products,
        attention=attention,
        attention_backward=backward,
        decompositions=decompositions,
        bandwidth=bandwidth,
        new_memory=new_memory if device.type == "cpu" else None,
        latency_us=_latency(device) * 1e6,
        sources={"all": "measured by `lorebench devices --calibrate`; peak: the highest rate seen"},
    )


def _products(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[float, float]]:
    """Yield TFLOP/s by the smallest side: the mean over which of the three sides is the smallest."""
    for side in SIDES:
        other = max(OTHER_SIDES, side)
        rates = []
        for rows, inner, columns in ((side, other, other), (other, side, other), (other, other, side)):
            left = torch.randn(rows, inner, device=device).to(dtype)
            right = torch.randn(columns, inner, device=device).to(dtype).t()  # as a linear layer has it
            taken = seconds(device, lambda left=left, right=right: left @ right)  # type: ignore[misc]
            rates.append(2 * rows * inner * columns / taken / 1e12)
        yield side, statistics.harmonic_mean(rates)


def _attention(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[float, float, float]]:
    """Yield TFLOP/s by length, forward and backward, counted as if nothing were masked."""
    heads, width = 8, 64
    for length in LENGTHS:
        batch = max(1, LENGTHS[-1] // length)
        query, key, value = (
            torch.randn(batch, heads, length, width, device=device).to(dtype).requires_grad_()
            for _ in range(3)
        )

        def forward(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        product = 2 * batch * heads * length * length * width
        once = seconds(device, forward)
        out = forward()
        grad = torch.ones_like(out)
        back = seconds(
            device,
            lambda out=out, grad=grad, given=(query, key, value): torch.autograd.grad(  # type: ignore[misc]
                out, given, grad, retain_graph=True
            ),
        )
        yield length, 2 * product / once / 1e12, 5 * product / back / 1e12


def _decompositions(device: torch.device, kind: Decomposition) -> Iterator[tuple[float, float]]:
    for side in DECOMPOSED:
        matrix = torch.randn(side, side, device=device)
        matrix = matrix @ matrix.T if kind == "eigh" else matrix
        taken = seconds(device, lambda matrix=matrix: DECOMPOSE[kind](matrix))  # type: ignore[misc]
        yield side, decomposition_flops(kind, side, side) / taken / 1e12


def _memory(device: torch.device) -> tuple[Points, Points]:
    """Return GB/s by the bytes that an operation moves, and by those that it allocates."""
    moving: Points = []
    new: Points = []
    for size in BYTES:
        first, second = (torch.ones(size // 12, device=device) for _ in range(2))
        out = torch.empty_like(first)
        within = seconds(device, lambda a=first, b=second, out=out: torch.add(a, b, out=out))  # type: ignore[misc]
        beyond = seconds(device, lambda a=first, b=second: a + b) - within  # type: ignore[misc]
        moving.append((size, size / within / 1e9))
        new.append(
            (size / 3, size / 3 / max(beyond, within / 20) / 1e9)
        )  # not to divide by what noise made 0
    return moving, new


def _latency(device: torch.device) -> float:
    """Return the seconds of an operation on hardly any data."""
    small, count = torch.ones(8, device=device), 1000
    return seconds(device, lambda: [small + small for _ in range(count)]) / count
