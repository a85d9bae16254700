"""Singular value decompositions of linear layers, computed once per checkpoint and kept on disk.

A cache entry is a manifest `svd-<sha256 of the weights>.json` that names a safetensors file by its
own sha256. Data is written before the manifest and both by `os.replace`, so two processes may write
at once; a reader checks both hashes, and what does not match is computed again, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Context

CACHE_VERSION = 1


class Svd(NamedTuple):
    """W = u diag(s) vh in float32 on the CPU: u (out, r), s (r,) descending, vh (r, in), r = min(out, in)."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Balanced factors of the best approximation: u sqrt(s) (out, rank) and sqrt(s) vh (rank, in)."""
        root = self.s[:rank].sqrt()
        return self.u[:, :rank] * root, root[:, None] * self.vh[:rank]


def decompose(layers: Mapping[str, nn.Linear], context: Context) -> dict[str, Svd]:
    """Decompose every weight, from the cache where it has them; NaN or infinity raises UserError."""
    if context.cache is None:
        return _compute(layers)
    key = _digest(layers)
    manifest = context.cache / f"svd-{key}.json"
    if manifest.exists():
        try:
            return _read(manifest, key, layers)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            context.warn(f"cached singular values {manifest.name} are not usable and computed again: {error}")
    result = _compute(layers)
    try:
        _write(manifest, key, result)
    except (OSError, SafetensorError) as error:
        context.warn(f"singular values could not be cached in {context.cache}: {error}")
    return result


def _compute(layers: Mapping[str, nn.Linear]) -> dict[str, Svd]:
    return {name: _svd(name, layer.weight) for name, layer in layers.items()}


@torch.no_grad()
def _svd(name: str, weight: Tensor) -> Svd:
    if not weight.isfinite().all():
        raise UserError(f"the weight of {name} holds NaN or infinity, so it has no singular values")
    parts = torch.linalg.svd(weight.float(), full_matrices=False)
    return Svd(*(part.cpu().contiguous() for part in parts))


@torch.no_grad()
def _digest(layers: Mapping[str, nn.Linear]) -> str:
    """sha256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256(f"svd {CACHE_VERSION}".encode())
    for name, layer in layers.items():
        weight = layer.weight.detach().cpu().contiguous()
        digest.update(f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(manifest: Path, key: str, layers: Mapping[str, nn.Linear]) -> dict[str, Svd]:
    """Load an entry; what is not as it was written raises an error that the caller expects."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    if content["weights_sha256"] != key:
        raise ValueError("the manifest is of other weights")
    data = manifest.with_name(Path(content["file"]).name)
    if _file_digest(data) != content["file_sha256"]:
        raise ValueError(f"{data.name} has changed since it was written")
    tensors = load_file(data)
    return {name: Svd(*(tensors[f"{name}.{part}"] for part in Svd._fields)) for name in layers}


def _write(manifest: Path, key: str, result: Mapping[str, Svd]) -> None:
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{part}": tensor for name, svd in result.items() for part, tensor in svd._asdict().items()
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".svd-") as scratch:
        data, note = Path(scratch, "data"), Path(scratch, "note")
        save_file(tensors, data)
        checksum = _file_digest(data)
        target = folder / f"svd-{checksum}.safetensors"
        content = {"weights_sha256": key, "file": target.name, "file_sha256": checksum}
        note.write_text(json.dumps(content, indent=1), encoding="utf-8")
        data.replace(target)
        note.replace(manifest)
