"""Measure the rates of this machine that a forecast of speed needs: the profile of a device.

Every probe runs in every round, and counts by the median of all its repeats, so that a slow minute of a
shared machine touches all rates alike and none much. Each call reads and writes other places of buffers that
are larger than a cache, as the operations of a training do. A GPU has larger probes, and many calls of one
before it is waited for. Nothing else should run meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.devices import DECOMPOSITIONS, Decomposition, DeviceProfile
from harness.engine.measure.flops import decomposition_flops

ROUNDS, SPAN_S = 5, 0.06
#: Calls of a probe on a GPU before it is waited for, at most.
MOST_CALLS = 200
HEADS, WIDTH = 8, 64
SMALL_CALLS = 1000
#: Places of a buffer that a probe goes through, at most.
MOST_PLACES = 256
#: Elements that the distance of two places is a multiple of, as what an allocator returns.
ALIGNED = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DECOMPOSE: dict[Decomposition, Callable[[Tensor], object]] = {
    "svd": lambda matrix: torch.linalg.svd(matrix, full_matrices=False),
    "eigh": torch.linalg.eigh,
    "qr": torch.linalg.qr,
}


@dataclass(frozen=True)
class Sizes:
    """The smallest sides of products, the least of their others, and sizes of other probes and of buffers."""

    sides: Sequence[int]
    other_sides: int
    lengths: Sequence[int]
    decomposed: Sequence[int]
    bytes: Sequence[int]
    buffer_bytes: int


SIZES = {
    "cpu": Sizes(
        [1 << power for power in range(2, 11)],
        1024,
        [64, 256, 1024],
        [32, 64, 128, 256, 512],
        [1 << power for power in range(13, 29, 2)],
        1 << 28,
    ),
    "cuda": Sizes(
        [1 << power for power in range(3, 14)],
        4096,
        [256, 1024, 4096],
        [128, 512, 2048, 4096],
        [1 << power for power in range(14, 31, 2)],
        1 << 30,
    ),
}
#: What a probe measures: a rate of the profile, a dtype or kind of decomposition, a size, and a variant.
Key = tuple[str, str, int, int]
Probe = Callable[[], object]
Points = list[tuple[float, float]]


def calibrate(
    device: torch.device, title: str, memory_gib: float, on_progress: Callable[[str], None]
) -> DeviceProfile:
    """Measure all rates of a device, in about a minute."""
    sizes = SIZES[device.type]
    probes = _products(device, sizes) | _attention(device, sizes)
    probes |= _decompositions(device, sizes) | _memory(device, sizes)
    small = torch.ones(8, device=device)
    probes["latency", "", 0, 0] = lambda: [small + small for _ in range(SMALL_CALLS)]
    taken = medians(device, probes, on_progress)
    products = {name: _product_rates(taken, sizes, name) for name in DTYPES}
    bandwidth, new_memory = _memory_rates(taken, sizes)
    return DeviceProfile(
        title=title,
        memory_gib=memory_gib,
        peak={name: max(rate for _, rate in points) for name, points in products.items()},
        products=products,
        attention={name: _attention_rates(taken, sizes, "attention", name, 2) for name in DTYPES},
        attention_backward={name: _attention_rates(taken, sizes, "backward", name, 5) for name in DTYPES},
        decompositions={
            kind: [
                (n, decomposition_flops(kind, n, n) / taken[kind, "", n, 0] / 1e12) for n in sizes.decomposed
            ]
            for kind in DECOMPOSITIONS
        },
        bandwidth=bandwidth,
        new_memory=new_memory if device.type == "cpu" else None,
        latency_us=taken["latency", "", 0, 0] / SMALL_CALLS * 1e6,
        sources={"all": "measured by `lorebench devices --calibrate`; peak: the highest rate seen"},
    )


def medians(
    device: torch.device, probes: Mapping[Key, Probe], on_progress: Callable[[str], None]
) -> dict[Key, float]:
    """Return the median seconds of each probe over all rounds; each is warmed up once."""
    taken: dict[Key, list[float]] = {key: [] for key in probes}
    calls = dict.fromkeys(probes, 1)
    for number in range(ROUNDS):
        on_progress(f"round {number + 1} of {ROUNDS}")
        for key, probe in probes.items():
            if not number:
                probe()
                if device.type == "cuda":  # to wait for it takes as long as many a kernel
                    calls[key] = max(1, min(MOST_CALLS, int(SPAN_S / _seconds(device, probe, 1))))
            spent = 0.0
            while not spent or spent < SPAN_S:
                seconds = _seconds(device, probe, calls[key])
                taken[key].append(seconds / calls[key])
                spent += seconds
    return {key: statistics.median(seconds) for key, seconds in taken.items()}


def _seconds(device: torch.device, probe: Probe, calls: int) -> float:
    """Return the seconds of so many calls, from an idle device to an idle device."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        probe()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shapes(side: int, other_sides: int) -> list[tuple[int, int, int]]:
    """Return rows, inner side and columns of three products, each with another smallest side."""
    other = max(other_sides, side)
    return [(side, other, other), (other, side, other), (other, other, side)]


def _products(device: torch.device, sizes: Sizes) -> dict[Key, Probe]:
    probes: dict[Key, Probe] = {}
    for name, dtype in DTYPES.items():
        source, target = (_buffer(device, sizes, dtype) for _ in range(2))
        for side in sizes.sides:
            for variant, (rows, inner, columns) in enumerate(_shapes(side, sizes.other_sides)):
                left, result = places(source, rows, inner), places(target, rows, columns)
                right = [weight.t() for weight in places(source, columns, inner)]  # as a linear layer has it
                probes["products", name, side, variant] = _far(torch.mm, left, right, result)
    return probes


def _buffer(device: torch.device, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """Return random numbers, in all more than a cache holds."""
    return torch.randn(sizes.buffer_bytes // dtype.itemsize, device=device).to(dtype)


def places(buffer: Tensor, *shape: int) -> list[Tensor]:
    """Return views of a shape from all over a buffer, which holds one at least."""
    count = prod(shape)
    number = max(1, min(MOST_PLACES, len(buffer) // count))
    apart = len(buffer) // number
    apart -= apart % ALIGNED if apart > ALIGNED else 0
    return [buffer[place * apart :][:count].view(shape) for place in range(number)]


def _far(
    function: Callable[..., object],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    out: Sequence[Tensor] = (),
) -> Probe:
    """Return a probe that takes other places in each call, and other ones for each argument."""
    middle = len(second) // 2
    left, right = cycle(first), cycle([*second[middle:], *second[:middle]])
    if not out:
        return lambda: function(next(left), next(right))
    results = cycle(out)
    return lambda: function(next(left), next(right), out=next(results))


def _product_rates(taken: Mapping[Key, float], sizes: Sizes, name: str) -> Points:
    """Return TFLOP/s by the smallest side: the mean over which of the three sides it is."""
    return [
        (
            side,
            statistics.harmonic_mean(
                2 * rows * inner * columns / taken["products", name, side, variant] / 1e12
                for variant, (rows, inner, columns) in enumerate(_shapes(side, sizes.other_sides))
            ),
        )
        for side in sizes.sides
    ]


def _attention(device: torch.device, sizes: Sizes) -> dict[Key, Probe]:
    probes: dict[Key, Probe] = {}
    for name, dtype in DTYPES.items():
        for length in sizes.lengths:
            shape = (_batch(length, sizes), HEADS, length, WIDTH)
            given = [torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3)]
            query, key, value = given
            attend = partial(scaled_dot_product_attention, query, key, value, is_causal=True)
            probes["attention", name, length, 0] = attend
            out = attend()
            probes["backward", name, length, 0] = partial(
                torch.autograd.grad, out, given, torch.ones_like(out), retain_graph=True
            )
    return probes


def _batch(length: int, sizes: Sizes) -> int:
    return max(1, sizes.lengths[-1] // length)


def _attention_rates(taken: Mapping[Key, float], sizes: Sizes, what: str, name: str, products: int) -> Points:
    """Return TFLOP/s by length, of so many products of matrices, counted as if nothing were masked."""
    return [
        (
            length,
            products
            * 2
            * _batch(length, sizes)
            * HEADS
            * length**2
            * WIDTH
            / taken[what, name, length, 0]
            / 1e12,
        )
        for length in sizes.lengths
    ]


def _decompositions(device: torch.device, sizes: Sizes) -> dict[Key, Probe]:
    probes: dict[Key, Probe] = {}
    for kind, decompose in DECOMPOSE.items():
        for side in sizes.decomposed:
            matrix = torch.randn(side, side, device=device)
            probes[kind, "", side, 0] = partial(decompose, matrix @ matrix.T if kind == "eigh" else matrix)
    return probes


def _memory(device: torch.device, sizes: Sizes) -> dict[Key, Probe]:
    """Return probes that read two tensors and write one: into memory that is there (0), and into new (1)."""
    probes: dict[Key, Probe] = {}
    source, target = (_buffer(device, sizes, torch.float32) for _ in range(2))
    for size in sizes.bytes:
        read, written = (places(buffer, size // 12) for buffer in (source, target))
        probes["memory", "", size, 0] = _far(torch.add, read, read, written)
        probes["memory", "", size, 1] = _far(torch.add, read, read)
    return probes


def _memory_rates(taken: Mapping[Key, float], sizes: Sizes) -> tuple[Points, Points]:
    """Return GB/s by the bytes that an operation moves, and by those that it allocates."""
    moving: Points = []
    new: Points = []
    for size in sizes.bytes:
        within, beyond = (taken["memory", "", size, variant] for variant in (0, 1))
        moving.append((size, size / within / 1e9))
        added = max(beyond - within, within / 20)  # noise may have made it 0
        new.append((size / 3, size / 3 / added / 1e9))
    return moving, new
