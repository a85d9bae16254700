"""Singular values of linear layers, computed once per checkpoint and kept on disk; factors of one layer.

Values alone are kept: with their vectors LLaMA-2 7B would need 41 GB, and a run factors only some layers, one
at a time. A cache entry is a manifest `svd-<sha256 of the weights>.json` that names a safetensors file by its
own sha256. Data is written before the manifest and both by `os.replace`, so two processes may write
at once; a reader checks both hashes, and what does not match is computed again, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Context

CACHE_VERSION = 2

#: Singular values in float32 on the CPU, descending, for each layer by name.
Values = Mapping[str, Tensor]
#: The same, for who needs them: they are costly.
AskForValues = Callable[[], Values]


def singular_values(layers: Mapping[str, nn.Linear], context: Context) -> Values:
    """Those of every weight, from the cache where it has them; NaN or infinity raises UserError."""
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


@torch.no_grad()
def factors(name: str, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Balanced float32 factors of the best approximation of a weight (out, in) = u diag(s) vh.

    u sqrt(s) (out, rank) and sqrt(s) vh (rank, in). UserError for NaN or infinity.
    """
    _check(name, weight)
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


@torch.no_grad()
def _compute(layers: Mapping[str, nn.Linear]) -> Values:
    for name, layer in layers.items():
        _check(name, layer.weight)
    return {name: torch.linalg.svdvals(layer.weight.float()).cpu() for name, layer in layers.items()}


def _check(name: str, weight: Tensor) -> None:
    if not weight.isfinite().all():
        raise UserError(f"the weight of {name} holds NaN or infinity, so it has no singular values")


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


def _read(manifest: Path, key: str, layers: Mapping[str, nn.Linear]) -> Values:
    """Load an entry; what is not as it was written raises an error that the caller expects."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    if content["weights_sha256"] != key:
        raise ValueError("the manifest is of other weights")
    data = manifest.with_name(Path(content["file"]).name)
    if _file_digest(data) != content["file_sha256"]:
        raise ValueError(f"{data.name} has changed since it was written")
    tensors = load_file(data)
    return {name: tensors[name] for name in layers}


def _write(manifest: Path, key: str, result: Values) -> None:
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".svd-") as scratch:
        data, note = Path(scratch, "data"), Path(scratch, "note")
        save_file(dict(result), data)
        checksum = _file_digest(data)
        target = folder / f"svd-{checksum}.safetensors"
        content = {"weights_sha256": key, "file": target.name, "file_sha256": checksum}
        note.write_text(json.dumps(content, indent=1), encoding="utf-8")
        data.replace(target)
        note.replace(manifest)
