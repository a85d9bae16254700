"""The weight files of a model folder: which they are, and what their headers say; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from harness import strict_json
from harness.errors import UserError, refusing
from harness.files import visible

FACTORS_MANIFEST = "factors.json"
FACTORED_WEIGHTS = "factored.safetensors"  # not `model.safetensors`: a plain loader must refuse, not guess
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: The same weights once more, under the names of another library; published folders of Mistral hold them.
OTHER_FORMATS = ("consolidated",)


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor: its type in the words of safetensors (F32, BF16, ...) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder's model in order.

    UserError without any, for an index that does not agree with them, and for weights beside those of the
    model: it is then not known which were meant.
    """
    found = {
        path.name: path
        for path in visible(folder, "*.safetensors")
        if not path.name.startswith(OTHER_FORMATS)
    }
    if not found:
        other = ", ".join(file.name for file in visible(folder, "*.bin")) or "no weights at all"
        raise UserError(f"{folder}: no *.safetensors file ({other}); only safetensors are read")
    named = _named(folder)
    if gone := sorted(set(named) - set(found)):
        raise UserError(f"{folder}: {_list(gone)} is missing; copy or download the folder again")
    if extra := sorted(set(found) - set(named)):
        raise UserError(
            f"{folder}: {_list(extra)} is beside {_list(named)}, so it is not known which weights are meant; "
            "move what does not belong to the model into another folder"
        )
    for path in found.values():
        if not path.is_file():
            raise UserError(f"{path}: not a file or a link that leads nowhere; copy or download it again")
    return sorted(found.values())


def _named(folder: Path) -> list[str]:
    """Return the names that the weight files of a folder should have."""
    manifest, index = folder / FACTORS_MANIFEST, folder / INDEX
    if manifest.exists() or manifest.is_symlink():
        return [FACTORED_WEIGHTS]
    if index.exists() and not (folder / WHOLE).exists():
        return sorted(set(_index(index).values()))
    return [WHOLE]


def _index(path: Path) -> dict[str, str]:
    """Return the file of each tensor by the index of a folder."""
    with refusing(f"{path}: not an index of weight files"):
        files = strict_json.read(path)["weight_map"]
        if not files or not all(isinstance(name, str) for pair in files.items() for name in pair):
            raise ValueError("weight_map must give the file of each tensor")
        return dict(files)


def headers(folder: Path) -> dict[str, Header]:
    """Return the header of every tensor of a folder; UserError for a file that is not as it was written."""
    found: dict[str, Header] = {}
    with opened(folder) as tensors:
        for name, tensor in tensors.items():
            found[name] = Header(tensor.get_dtype(), tuple(tensor.get_shape()))
    return found


@contextmanager
def opened(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the tensors of a folder by name, unread, as safetensors gives slices of them."""
    tensors: dict[str, Any] = {}
    places: dict[str, str] = {}
    with ExitStack() as stack:
        for path in weight_files(folder):
            with refusing(f"{path}: corrupt safetensors file; copy or download it again"):
                file = stack.enter_context(safe_open(path, framework="pt"))
                names = list(file.keys())
            if twice := sorted(set(names) & set(tensors)):
                raise UserError(f"{folder}: {_list(twice)} is in {places[twice[0]]} and in {path.name}")
            tensors |= {name: file.get_slice(name) for name in names}
            places |= dict.fromkeys(names, path.name)
        _compare_with_index(folder, places)
        yield tensors


def _compare_with_index(folder: Path, places: Mapping[str, str]) -> None:
    index = folder / INDEX
    if (len(set(places.values())) <= 1 and WHOLE in places.values()) or not index.is_file():
        return
    said = _index(index)
    if wrong := sorted(name for name in said.keys() | places.keys() if said.get(name) != places.get(name)):
        raise UserError(
            f"{index}: says {_list([said.get(name, 'nothing') for name in wrong[:1]])} of {_list(wrong)}, "
            f"which is in {places.get(wrong[0], 'no file')}; copy or download the folder again"
        )


def _list(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
