"""Adam with moments in 8 bits: block-wise dynamic quantisation (Dettmers et al. 2022, arXiv 2110.02861).

Each block of 256 elements shares a scale, and a code of 256 values stands for what lies between. The
kernels are those of bitsandbytes, because the papers used it, it runs on CPU, GPU and fake tensors
alike, and its states are plain tensors; torchao's states are tensor subclasses, and its first step
compiles for seconds.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from harness.errors import UserError
from harness.plugins import import_library

BLOCK = 256  # as in bitsandbytes' own optimizers
#: Each moment with its scales.
PARTS = (("exp_avg", "absmax1"), ("exp_avg_sq", "absmax2"))


def new_state(tensor: Tensor) -> dict[str, Any]:
    """Return zero moments for a tensor: one byte per element and moment, four bytes per block and moment."""
    state: dict[str, Any] = {"step": 0}
    for moment, _ in PARTS:
        state[moment] = torch.zeros_like(tensor, dtype=torch.uint8, memory_format=torch.contiguous_format)
    for _, scales in PARTS:
        state[scales] = torch.zeros(-(-tensor.numel() // BLOCK), device=tensor.device)
    return state


def holds(state: dict[str, Any]) -> bool:
    """Return whether a state is in 8 bits."""
    return "absmax1" in state


@torch.no_grad()
def update(
    tensor: Tensor, grad: Tensor, state: dict[str, Any], betas: tuple[float, float], **common: float
) -> None:
    """Update a contiguous tensor in place by one Adam step; `common` is lr, eps and weight_decay."""
    state["step"] += 1
    signed, unsigned = _codebooks(state["absmax1"])
    library().functional.optimizer_update_8bit_blockwise(
        "adam",
        grad.contiguous(),
        tensor,
        state["exp_avg"],
        state["exp_avg_sq"],
        *betas,
        beta3=0.0,
        alpha=0.0,
        step=state["step"],
        qmap1=signed,
        qmap2=unsigned,
        absmax1=state["absmax1"],
        absmax2=state["absmax2"],
        **common,
    )


def moments(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return both moments in float32."""
    dequantise = library().functional.dequantize_blockwise
    first, second = (
        dequantise(state[moment], absmax=state[scales], code=code, blocksize=BLOCK)
        for (moment, scales), code in zip(PARTS, _codebooks(state["absmax1"]), strict=True)
    )
    return first, second


def set_moments(state: dict[str, Any], first: Tensor, second: Tensor) -> None:
    """Quantise both moments into a state of their shape, in place."""
    quantise = library().functional.quantize_blockwise
    codes = _codebooks(state["absmax1"])
    for (moment, scales), code, value in zip(PARTS, codes, (first, second), strict=True):
        quantised, statistics = quantise(value.contiguous(), code=code, blocksize=BLOCK)
        state[moment].copy_(quantised)
        state[scales].copy_(statistics.absmax)


def _codebooks(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a signed and an unsigned code, 2 KiB that all tensors of a device or of one simulation share."""
    return _made_codebooks(like.device, getattr(like, "fake_mode", None))


@lru_cache(maxsize=8)
def _made_codebooks(device: torch.device, simulation: object) -> tuple[Tensor, Tensor]:
    return torch.tensor(code(signed=True), device=device), torch.tensor(code(signed=False), device=device)


def code(signed: bool) -> list[float]:
    """Return the codes of dynamic tree quantisation: 0, 1 and seven decades, each twice as dense as the last.

    Computed from plain numbers, since bitsandbytes reads values of tensors and fake tensors have none.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        middles = [10.0 ** (decade - 6) * (0.1 + 0.9 * (item + 0.5) / count) for item in range(count)]
        values += middles + [-middle for middle in middles if signed]
    return sorted(values)


def library() -> ModuleType:
    """Import bitsandbytes, which takes seconds; UserError where it is not installed."""
    try:
        return import_library("bitsandbytes")
    except ImportError as error:
        raise UserError(f"state_bits 8 needs bitsandbytes ({error}); pip install bitsandbytes") from error
