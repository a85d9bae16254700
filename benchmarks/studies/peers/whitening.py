"""Factors of least output error beside the published route of SVD-LLM, and the bytes of its statistics.

Published: Cholesky S S^T = X X^T and its inverse in float64, SVD of W S in float32, second factor V^T S^-1
(arXiv 2403.07378, section 3.1; precisions as in the code). The same with an SVD in float64 is listed, too.
Both sides begin with the weight and the sum of x x^T and end with two factors in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.studies.peers.bench import Case, Duel
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.factorisers import Whiten

#: Output and input of the matrices of LLaMA-2 7B: q, down and up.
SHAPES = {"7B attention": (4096, 4096), "7B down": (4096, 11008), "7B up": (11008, 4096)}
TINY = {"tiny, down": (12, 20), "tiny, up": (20, 12)}
#: The share of its parameters that a matrix loses.
REDUCTION = 0.2
TARGET = 0.6
#: Tokens for each feature of an input, in this many parts.
TOKENS, PARTS = 4, 16
#: The most that the errors of both sides' outputs may differ by, relative to one.
NEAR = 1e-6
#: Most bytes of the statistics of a block of LLaMA-2 7B.
MOST_BYTES = 700_000_000
Pair = tuple[Tensor, Tensor]


def cases(quick: bool) -> Iterator[Case]:
    """Yield one matrix of each shape, beside an SVD of either precision."""
    for name, shape in (TINY if quick else SHAPES).items():
        rank = int((1 - REDUCTION) * shape[0] * shape[1] / sum(shape))
        for dtype in (torch.float32, torch.float64):
            exact = dtype is torch.float64
            yield Case(
                "svdllm",
                "whitening",
                f"{name}: {shape[0]} x {shape[1]}, rank {rank}",
                f"Cholesky, inverse, SVD in {str(dtype).removeprefix('torch.')}",
                partial(whitening, *shape, rank, dtype),
                TARGET if not exact else None,
                heavy=not quick,
            )


def whitening(out: int, inputs: int, rank: int, dtype: torch.dtype) -> Duel:
    """Factor one matrix by the statistics of its inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, inputs, generator=generator) / inputs**0.5
    sums = statistics(inputs, generator)

    def ours() -> Pair:
        found = Whiten().decompose(weight, sums, rank).factors(rank)
        return found.up.float(), found.down.float()

    def peer() -> Pair:
        return published(weight, sums.products, rank, dtype)

    errors = [error(weight, *factors(), sums.products) for factors in (ours, peer)]
    apart = abs(errors[0] / errors[1] - 1)
    if not apart <= NEAR:
        raise ValueError(f"ours and the peer do different work: their errors lie {apart:.1e} apart")
    facts = {
        "errors of the outputs differ by": f"{apart:.0e}",
        "bytes of a block's statistics": str(block_bytes()),
    }
    return Duel(ours, peer, facts)


def statistics(width: int, generator: torch.Generator) -> InputStatistics:
    """Return the sums over inputs of few strong directions and noise of different strength, in parts."""
    directions = torch.randn(width // 4, width, generator=generator) / (width // 4) ** 0.5
    scales = torch.logspace(-1, 0.5, width)
    sums = InputStatistics(width)
    for _ in range(PARTS):
        tokens = TOKENS * width // PARTS + 1
        strong = torch.randn(tokens, width // 4, generator=generator) @ directions
        sums.add(strong + scales * torch.randn(tokens, width, generator=generator))
    return sums


def published(weight: Tensor, products: Tensor, rank: int, dtype: torch.dtype) -> Pair:
    """Return the factors (out, rank) and (rank, in) of the published route."""
    lower = torch.linalg.cholesky(products.double())
    inverse = torch.linalg.inv(lower)
    u, s, vh = torch.linalg.svd(weight.to(dtype) @ lower.to(dtype), full_matrices=False)
    root = s[:rank].sqrt()
    up = u[:, :rank] * root
    down = (root[:, None] * vh[:rank]) @ inverse.to(dtype)
    return up.float(), down.float()


def error(weight: Tensor, up: Tensor, down: Tensor, products: Tensor) -> float:
    """Return the sum of squared errors of the outputs, tr(D X X^T D^T) for D = W - up down, in float64."""
    difference = weight.double() - up.double() @ down.double()
    return float((difference @ products.double()).mul_(difference).sum())


def block_bytes() -> int:
    """Return the bytes of the four sums of a block of LLaMA-2 7B, measured of sums without values."""
    total = 0
    for width in (4096, 4096, 4096, 11008):  # of q, k and v; o; gate and up; down
        sums = InputStatistics(width)
        sums.add(torch.empty(1, width, device="meta"))
        total += sum(tensor.nbytes for tensor in (sums.products, sums.total, sums.absolute))
    if total > MOST_BYTES:
        raise ValueError(f"the statistics of a block take {total:,} bytes, more than {MOST_BYTES:,}")
    return total
