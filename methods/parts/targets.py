"""Which linear layers of a transformer a method acts on. Names only; nothing is changed here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from harness.errors import UserError, nearest
from harness.factored import FactoredLinear

#: The seven linear layers of a LLaMA block: attention (first four) and feed-forward (last three).
LINEAR_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def kind_of(name: str) -> str:
    """The last part of a module's name, e.g. `q_proj`."""
    return name.rpartition(".")[2]


def target_linears(model: nn.Module, kinds: Collection[str]) -> dict[str, nn.Linear]:
    """Every linear layer whose kind is asked for, by full name, in the order of the model.

    The two factors of a factored layer are of that layer's kind. The output head is never found: it
    may share its weight with the embedding. A kind that the model lacks raises UserError.
    """
    known = _linears_by_kind(model)
    for kind in kinds:
        if kind not in known:
            raise UserError(f"targets: the model has no linear layer {kind!r}; {nearest(kind, known)}")
    wanted = set().union(*(known[kind] for kind in kinds))
    return {
        name: layer
        for name, layer in model.named_modules()
        if name in wanted and isinstance(layer, nn.Linear)
    }


def _linears_by_kind(model: nn.Module) -> Mapping[str, set[str]]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    kinds: dict[str, set[str]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            parent = name.rpartition(".")[0]
            inside = isinstance(model.get_submodule(parent), FactoredLinear)
            kinds.setdefault(kind_of(parent if inside else name), set()).add(name)
    return kinds
