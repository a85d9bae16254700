"""NormalFloat: numbers as quantiles of a normal distribution, times the largest magnitude of their block.

A number has `bits`, a code of the codebook of `points`. The scales of the blocks, less the smallest of all,
have `scale_bits` each, equally spaced up to the largest of a superblock, which has `scale_dtype` (Dettmers et
al., QLoRA, 2023, arXiv 2305.14314, section 3; blocks as in Guo et al., LQ-LoRA, 2023, arXiv 2311.12023).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Literal

import torch
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as F

from harness.errors import UnsupportedError
from methods.parts.quantisation.packing import codes_together, packed, unpacked
from methods.parts.quantisation.tensor import Form, Quantised, exact, parts_of

#: Where the outermost quantile lies, as a probability (QLoRA's code).
OUTERMOST = 0.9677083
#: The smallest scale of a matrix, from which the others are counted, is a number of 32 bits.
OFFSET_BITS = 32


@dataclass(frozen=True)
class Layout:
    """Bits of numbers and of their scales, numbers of a block, and blocks of a superblock."""

    bits: int = 4
    scale_bits: int = 8
    scale_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    block: int = 64
    superblock: int = 256

    def __str__(self) -> str:
        scales = f"scales {self.scale_bits} bits, {self.superblock} to a {self.scale_dtype}"
        return f"{self.bits} bits, blocks of {self.block}, {scales}"

    @property
    def bits_per_weight(self) -> float:
        """Bits of a number with its share of the scales, in a large matrix."""
        return self.bits + self.scale_bits / self.block + self._largest_bits / (self.block * self.superblock)

    def stored_bits(self, elements: int) -> int:
        """Return the bits that a matrix takes, whole bytes; blocks divide its elements."""
        blocks = elements // self.block
        numbers, scales = _packed_bits(elements, self.bits), _packed_bits(blocks, self.scale_bits)
        return numbers + scales + self._largest_bits * ceil(blocks / self.superblock) + OFFSET_BITS

    @property
    def _largest_bits(self) -> int:
        return torch.finfo(getattr(torch, self.scale_dtype)).bits


def _packed_bits(count: int, bits: int) -> int:
    together = codes_together(bits)
    return ceil(count / together) * together * bits


@functools.cache
def points(bits: int) -> tuple[float, ...]:
    """Return the 2^bits numbers of the codebook, ascending: from -1 to 1, with 0."""

    def quantiles(count: int) -> list[float]:
        step = (OUTERMOST - 0.5) / count
        return [float(norm.ppf(OUTERMOST - place * step)) for place in range(count)]

    above, below = quantiles(2 ** (bits - 1)), quantiles(2 ** (bits - 1) - 1)
    return tuple(value / above[0] for value in [*(-value for value in below), 0.0, *reversed(above)])


@dataclass(frozen=True)
class NormalForm(Form):
    """How a matrix of NormalFloat is laid out."""

    layout: Layout


class NormalFloats(Quantised):
    """A matrix stored as packed codes and scales, the largest scales and the smallest; it cannot change.

    Its parts: `codes` and `scales` as bytes, `largest` (superblocks), and `smallest` (1) in float32.
    """

    PARTS = ("codes", "scales", "largest", "smallest")
    codes: Tensor
    scales: Tensor
    largest: Tensor
    smallest: Tensor
    form: NormalForm

    @torch.no_grad()
    def floats(self, dtype: torch.dtype) -> Tensor:
        """Return a float copy, computed in float32 at least."""
        layout, elements, wide = self.form.layout, prod(self.form.shape), exact(dtype)
        values = torch.empty((elements // layout.block, layout.block), dtype=dtype, device=self.codes.device)
        scales = _scales(layout, self.scales, self.largest, self.smallest, len(values), wide)
        codebook = torch.tensor(points(layout.bits), dtype=wide, device=self.codes.device)
        codes = unpacked(self.codes, layout.bits)[:elements].view(values.shape)
        for part, code, scale in parts_of(elements, values, codes, scales):
            part.copy_(codebook[code.int()].mul_(scale))
        return values.view(self.form.shape)

    def write(self, values: Tensor) -> None:
        """Raise UnsupportedError: an update smaller than half the distance of points would be lost."""
        raise UnsupportedError(
            "weights stored as NormalFloat do not train; train adapters beside them, or store them in int8"
        )

    @classmethod
    def form_of(cls, content: Mapping[str, Any]) -> NormalForm:
        """Return the form that was saved."""
        return NormalForm(**{**content, "layout": Layout(**content["layout"])})


@torch.no_grad()
def normal_floats(values: Tensor, layout: Layout, dtype: torch.dtype | None = None) -> NormalFloats:
    """Return a tensor of `dtype` with each number at the nearest point; blocks divide its elements.

    Numbers are divided by the scale of their block as it is stored, which may be a little less than their
    largest magnitude.
    """
    wide = exact(values.dtype)
    rows = values.detach().reshape(-1, layout.block)
    peaks = torch.linalg.vector_norm(rows, float("inf"), dim=1, dtype=wide)
    smallest = peaks.min().reshape(1).float()
    above = _padded((peaks - smallest).clamp_(min=0), layout.superblock).view(-1, layout.superblock)
    largest = above.amax(dim=1).to(getattr(torch, layout.scale_dtype))
    levels = 2**layout.scale_bits - 1
    places = above.div_(_not_zero(largest.to(wide))[:, None]).mul_(levels).round_().clamp_(max=levels)
    places = _padded(places.flatten()[: len(rows)].to(torch.uint8), codes_together(layout.scale_bits))
    scales = packed(places, layout.scale_bits)
    divisors = _not_zero(_scales(layout, scales, largest, smallest, len(rows), wide))
    codebook = torch.tensor(points(layout.bits), dtype=wide, device=values.device)
    between = (codebook[1:] + codebook[:-1]) / 2
    codes = torch.empty(rows.shape, dtype=torch.uint8, device=values.device)
    for code, row, divisor in parts_of(values.numel(), codes, rows, divisors):
        code.copy_(torch.bucketize(row / divisor, between, out_int32=True))
    flat = _padded(codes.flatten(), codes_together(layout.bits))
    form = NormalForm(tuple(values.shape), dtype or values.dtype, layout)
    return NormalFloats(form, packed(flat, layout.bits), scales, largest, smallest)


def _scales(
    layout: Layout, scales: Tensor, largest: Tensor, smallest: Tensor, blocks: int, dtype: torch.dtype
) -> Tensor:
    """Return the scale of each block as it is stored (blocks, 1)."""
    places = unpacked(scales, layout.scale_bits)[:blocks].to(dtype) / (2**layout.scale_bits - 1)
    of_block = largest.to(dtype).repeat_interleave(layout.superblock)[:blocks]
    return (smallest.to(dtype) + places * of_block)[:, None]


def _padded(values: Tensor, multiple: int) -> Tensor:
    """Return a vector with zeros up to a multiple of a length."""
    return F.pad(values, (0, -len(values) % multiple))


def _not_zero(values: Tensor) -> Tensor:
    """Return divisors: 1 for 0, by which only zeros are divided."""
    return torch.where(values > 0, values, 1.0)
