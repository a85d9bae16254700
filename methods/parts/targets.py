"""Target layers of a method: which they are, the rank that each allows, and a random stream for each."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from harness.errors import UserError, nearest
from harness.factored import FactoredLinear
from harness.method import Context
from methods.parts.quantisation.tensor import Quantised

#: The seven linear layers of a LLaMA block: attention (first four) and feed-forward (last three).
LINEAR_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Shape (out, in) of each target matrix by the full name of its layer.
Shapes = Mapping[str, tuple[int, ...]]


def kind_of(name: str) -> str:
    """Return the last part of a module's name, e.g. `q_proj`."""
    return name.rpartition(".")[2]


def target_linears(model: nn.Module, kinds: Collection[str]) -> dict[str, nn.Linear]:
    """Return every linear layer of these kinds by full name, in the order of the model.

    The two factors of a factored layer are of that layer's kind. The output head is never included: it
    may share its weight with the embedding. UserError for a kind that the model lacks.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found: dict[str, tuple[str, nn.Linear]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            parent = name.rpartition(".")[0]
            inside = isinstance(model.get_submodule(parent), FactoredLinear)
            found[name] = kind_of(parent if inside else name), layer
    known = {kind for kind, _ in found.values()}
    _check_replaced(model, {*kinds} - known)
    check_kinds(kinds, known)
    return {name: layer for name, (kind, layer) in found.items() if kind in kinds}


def dense_linears(model: nn.Module, kinds: Collection[str]) -> dict[str, nn.Linear]:
    """Return every linear layer of these kinds by full name, each of them as a plain model has it.

    UserError where an earlier method has factored, replaced or quantised one, and as of `target_linears`.
    """
    chosen = [module for name, module in _might_be_linear(model) if kind_of(name) in kinds]
    if any(type(module) is not nn.Linear or isinstance(module.weight, Quantised) for module in chosen):
        raise UserError(
            "layers are factored already, replaced or quantised; put the compression first in the stack"
        )
    return target_linears(model, kinds)


def _might_be_linear(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules by full name but those that are never targets: the model, its head, embeddings."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if name and module is not head and not isinstance(module, nn.Embedding):
            yield name, module


def _check_replaced(model: nn.Module, missing: Collection[str]) -> None:
    """Raise UserError where layers of these kinds are no longer linear, because of an earlier method."""
    for name, layer in _might_be_linear(model):
        if (kind := kind_of(name)) not in missing:
            continue
        if any(isinstance(getattr(layer, base, None), nn.Linear) for base in ("base_layer", "base")):
            raise UserError(
                f"targets: the model has adapters already, around {kind!r}; use one method of adapters in a "
                "stack, put what stores weights in fewer bits before it, and nothing that trains them all"
            )
        raise UserError(
            f"targets: {kind!r} is a {type(layer).__name__} already, not a linear layer; leave out one of "
            "the methods that replace it or train it"
        )


def target_matrices(model: nn.Module, kinds: Collection[str]) -> set[str]:
    """Return the names of the matrices that train in layers of these kinds, of factors and adapters, too.

    UserError for a kind that the model lacks, and where none trains.
    """
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    check_kinds(kinds, {part for name in matrices for part in name.split(".")})
    found = {name for name, p in matrices.items() if p.requires_grad and {*kinds} & {*name.split(".")}}
    if not found:
        raise UserError(f"targets: no matrix of {', '.join(kinds)} trains; choose layers that do")
    return found


def check_kinds(kinds: Collection[str], known: Collection[str]) -> None:
    """Raise UserError for the first of the option `targets` that is not among the kinds of the model."""
    for kind in kinds:
        if kind not in known:
            raise UserError(f"targets: the model has no linear layer {kind!r}; {nearest(kind, known)}")


def shapes_of(layers: Mapping[str, nn.Linear]) -> dict[str, tuple[int, ...]]:
    """Return the shape (out, in) of every weight by the name of its layer."""
    return {name: tuple(layer.weight.shape) for name, layer in layers.items()}


def clamp_ranks(method: str, rank: int, shapes: Shapes, context: Context) -> dict[str, int]:
    """Return the rank of every matrix: `rank`, or its short side with one warning for all of these."""
    ranks = {name: min(rank, *shape) for name, shape in shapes.items()}
    if clamped := [value for value in ranks.values() if value < rank]:
        context.warn(
            f"{method}: rank {rank} is more than the short side of {len(clamped)} matrices; "
            f"these got their short side as rank, the smallest {min(clamped)}"
        )
    return ranks


def random_stream(seed: int, name: str, index: int, device: torch.device) -> torch.Generator:
    """Return a generator that depends on its arguments alone, so no layer's draws move another's."""
    digest = hashlib.sha256(f"{seed} {name} {index}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global random numbers for foreign code on a device, and restore them at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
