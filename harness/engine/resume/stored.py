"""One checkpoint on disk: a folder of safetensors files and a manifest that is whole, or is not there.

    00001000.5f3a9c41/                     the update, and the start of the manifest's hash
        model-00001-of-00002.safetensors   tensors, as torch.distributed.checkpoint writes them
        checkpoint.json                    hash of each file, plain values, what wrote it

It is written under a hidden name, put on the disk and renamed. Reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import files
from harness.engine.resume import names
from harness.errors import UserError, one_line

#: The version of all of this, for `about`.
FORMAT = 1
#: The library copies a file's tensors before it writes them, so a file is small beside a model.
FILE_BYTES = 1 << 29


@dataclass(frozen=True)
class Stored:
    """A checkpoint whose files are those that were written.

    `step` is the number of updates done, `about` says what wrote it, `plain` is the state but its tensors,
    `device` names the tensors that were not on the host.
    """

    path: Path
    step: int
    about: Mapping[str, Any]
    plain: Any
    device: frozenset[str]

    def tensors(self, device: torch.device, into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read all tensors by name; those of `into` are filled in place and come first.

        UserError where a tensor of `into` is missing or has another shape.
        """
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint import HuggingFaceStorageReader

        known: Mapping[str, Any] = (
            HuggingFaceStorageReader(str(self.path)).read_metadata().state_dict_metadata
        )
        for name, tensor in into.items():
            shape = tuple(getattr(known.get(name), "size", ()))
            if name not in known or shape != tuple(tensor.shape):
                raise UserError(
                    f"{self.path}: holds {name} as {shape if name in known else 'nothing'}, but this run has "
                    f"{tuple(tensor.shape)} there; begin anew with --from-scratch"
                )
        found = dict(into)
        for name, each in known.items():
            if name not in into:
                place = device if name in self.device else torch.device("cpu")
                found[name] = torch.empty(each.size, dtype=each.properties.dtype, device=place)
        with _quiet(), _plainly():
            checkpoint.load(dict(found), storage_reader=HuggingFaceStorageReader(str(self.path)))
        return found


def write(
    folder: Path,
    step: int,
    plain: Any,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    device: Sequence[str] = (),
) -> Path:
    """Write a checkpoint below a folder and return its path; OSError or the library's error if it cannot.

    `device` names the tensors that were on a device before they were copied to the host.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    folder.mkdir(parents=True, exist_ok=True)
    half = folder / names.half(step)
    remove(half)
    try:
        with _quiet(), _plainly():
            writer = HuggingFaceStorageWriter(str(half), fqn_to_index_mapping=_in_files(tensors))
            checkpoint.save(dict(tensors), storage_writer=writer)
        content = {
            "step": step,
            "about": about,
            "files": {path.name: files.sha256(path) for path in sorted(half.glob("*.safetensors"))},
            "device": list(device),
            "plain": plain,
        }
        text = json.dumps(content, allow_nan=False).encode()
        files.replace(half / names.MANIFEST, text)
        path = folder / names.name(step, hashlib.sha256(text).hexdigest())
        remove(path)  # one that was found broken
        half.rename(path)
        files.sync_folder(folder)
    finally:
        with suppress(OSError):
            remove(half)
    return path


def read(path: Path) -> Stored:
    """Read the manifest of a checkpoint and compare all hashes; UserError says what is broken."""
    try:
        text = (path / names.MANIFEST).read_bytes()
        content = json.loads(text)
        if path.name != names.name(content["step"], hashlib.sha256(text).hexdigest()):
            raise UserError(f"{path}: {names.MANIFEST} is not what was written")
        for name, digest in content["files"].items():
            if files.sha256(path / name) != digest:
                raise UserError(f"{path}: {name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no checkpoint: {one_line(error)}") from error
    return Stored(path, content["step"], content["about"], content["plain"], frozenset(content["device"]))


def remove(path: Path) -> None:
    """Remove a checkpoint, or a half of one, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _in_files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of the file of each tensor, from 1."""
    number, size, found = 1, 0, {}
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > FILE_BYTES:
            number, size = number + 1, 0
        size += tensor.nbytes
        found[name] = number
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from warning that this process is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch.distributed")
        yield


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise what went wrong instead of the library's exception, which is no `Exception` but a traceback."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause = next((failed[0] for failed in error.failures.values()), error)
        raise (cause if isinstance(cause, Exception) else OSError(one_line(cause))) from None
