"""Pack codes of 2, 3, 4 or 8 bits into bytes: as few bytes as hold whole codes, the first code lowest."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor


def codes_together(bits: int) -> int:
    """Return how many codes fill whole bytes: 4, 8, 2 and 1 for 2, 3, 4 and 8 bits."""
    return 8 // gcd(bits, 8)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes (..., count) uint8 as bytes (..., count * bits / 8); whole bytes hold the count."""
    if bits == 8:
        return codes
    together, wide = codes_together(bits), _wide(bits)
    groups = codes.unflatten(-1, (-1, together))
    word = groups[..., 0].to(wide)
    for place in range(1, together):
        word = word | groups[..., place].to(wide) << bits * place
    data = [word >> 8 * byte & 255 for byte in range(_bytes(bits))]
    return torch.stack(data, -1).flatten(-2).to(torch.uint8)


def unpacked(data: Tensor, bits: int) -> Tensor:
    """Return the codes that were packed, uint8."""
    if bits == 8:
        return data
    groups, wide = data.unflatten(-1, (-1, _bytes(bits))), _wide(bits)
    word = groups[..., 0].to(wide)
    for byte in range(1, _bytes(bits)):
        word = word | groups[..., byte].to(wide) << 8 * byte
    mask = 2**bits - 1
    places = range(codes_together(bits))
    return torch.stack([word >> bits * place & mask for place in places], -1).flatten(-2).to(torch.uint8)


def _bytes(bits: int) -> int:
    return codes_together(bits) * bits // 8


def _wide(bits: int) -> torch.dtype:
    """Return a dtype that holds all codes that fill whole bytes."""
    return torch.uint8 if _bytes(bits) == 1 else torch.int32
