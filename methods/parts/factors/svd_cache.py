"""Singular values of linear layers, computed once per checkpoint and cached on disk; factors of one layer.

The cache holds values alone: their vectors for LLaMA-2 7B would take 41 GB, and a run factors only some
layers, one at a time. An entry `svd-<sha256 of the weights>.bin` is the sha256 of that key and the data,
followed by the data in the safetensors format. An entry that does not match is computed again, with a
warning. Files are replaced in one step, so several processes may write at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from harness import files
from harness.errors import UserError
from harness.method import Context

CACHE_VERSION = 3

#: Singular values in float32 on the CPU, descending, for each layer by name.
SingularValues = Mapping[str, Tensor]


def singular_values(layers: Mapping[str, nn.Linear], context: Context) -> SingularValues:
    """Return those of every weight, cached ones where they are valid; UserError for NaN or infinity."""
    if context.cache is None:
        return _compute(layers)
    key = _key(layers)
    entry = context.cache / f"svd-{key}.bin"
    if entry.exists():
        try:
            values = _read(entry, key)
            return {name: values[name] for name in layers}  # a file has an order of its own
        except (OSError, ValueError) as error:
            context.warn(f"cached singular values {entry.name} are not usable and computed again: {error}")
    result = _compute(layers)
    try:
        data = save(dict(result))
        files.replace(entry, _checksum(key, data) + data)
    except OSError as error:
        context.warn(f"singular values could not be cached in {context.cache}: {error}")
    return result


@torch.no_grad()
def truncated_svd(name: str, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return balanced float32 factors of the best approximation of a weight (out, in) = u diag(s) vh.

    They are u sqrt(s) (out, rank) and sqrt(s) vh (rank, in). UserError for NaN or infinity.
    """
    _check(name, weight)
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


@torch.no_grad()
def _compute(layers: Mapping[str, nn.Linear]) -> SingularValues:
    for name, layer in layers.items():
        _check(name, layer.weight)
    return {name: torch.linalg.svdvals(layer.weight.float()).cpu() for name, layer in layers.items()}


def _check(name: str, weight: Tensor) -> None:
    if not weight.isfinite().all():
        raise UserError(f"the weight of {name} holds NaN or infinity, so it has no singular values")


@torch.no_grad()
def _key(layers: Mapping[str, nn.Linear]) -> str:
    """Return the sha256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256(f"svd {CACHE_VERSION}".encode())
    for name, layer in layers.items():
        weight = layer.weight.detach().cpu().contiguous()
        digest.update(f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).digest()


def _read(entry: Path, key: str) -> SingularValues:
    """Load an entry; ValueError unless it holds the values of these weights, as they were written."""
    content = entry.read_bytes()
    checksum, data = content[:32], content[32:]
    if checksum != _checksum(key, data):
        raise ValueError("it was damaged, or belongs to other weights")
    return load(data)
