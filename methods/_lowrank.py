"""What the methods share that replace weights by two factors of a lower rank and may train these.

A method of this kind decides which layers are factored and to which rank (`choose_ranks`); the rest
is here: decomposition, replacement, what is trainable, and the facts for the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from harness.config import OptimConfig, Share
from harness.errors import UnsupportedError, UserError
from harness.factored import FactoredLinear, factor, ranks, restructure
from harness.method import Caps, Context, Method, MethodConfig
from methods._adamw import TRAIN_OPTIONS, AdamWStepper
from methods._spectrum import Svd, decompose
from methods._targets import LINEAR_KINDS, kind_of, target_linears

#: Shape (out, in) of each target layer by name.
Shapes = Mapping[str, tuple[int, ...]]


class LowRankConfig(MethodConfig):
    """What all low-rank compressions are asked for."""

    err: Share = 0.5
    """Effective rank reduction: the share of the ranks of all target matrices that is taken away."""

    train: Literal["lrc", "none"] = "lrc"
    """`lrc` trains the factors and all RMSNorm weights; `none` leaves training to a method on top."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers that take part; embeddings and the output head never do."""


class LowRank(Method):
    """Base of the methods that factor linear layers; a subclass only chooses the ranks."""

    Config = LowRankConfig
    config: LowRankConfig

    @property
    def caps(self) -> Caps:
        """Works on trained weights only."""
        because = "random weights have no small singular values to leave out"
        return Caps(stages=frozenset({"finetune", "compress"}), because=because, **TRAIN_OPTIONS)

    def choose_ranks(self, shapes: Shapes, svd: Mapping[str, Svd], context: Context) -> dict[str, int]:
        """Return the rank of each layer that is to be factored, by name; the others stay as they are."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace the chosen layers by factors, in place; on the meta device by empty ones."""
        layers = target_linears(model, self.config.targets)
        if ranks(model) or any(type(layer) is not nn.Linear for layer in layers.values()):
            raise UserError("layers are factored already, or replaced; put one low-rank method first")
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        sizes = parameters(model), multiplications(model)
        on_meta = any(layer.weight.is_meta for layer in layers.values())
        if on_meta and self.caps.value_dependent:
            raise UnsupportedError("the ranks depend on the values of the weights, and there are none")
        svd = {} if on_meta else decompose(layers, context)
        del layers  # so that each dense weight is freed when it is replaced
        kept = self.choose_ranks(shapes, svd, context)
        if on_meta:
            restructure(model, kept)
        else:
            for name, rank in kept.items():
                _replace(model, name, *svd[name].factors(rank))
        if self.config.train == "lrc":
            _train_factors_and_norms(model)
        self._report(shapes, kept, context)
        context.facts["parameter_ratio"] = parameters(model) / sizes[0]
        context.facts["flop_ratio"] = multiplications(model) / sizes[1]
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper | None:
        """AdamW over factors and norms, or None where only compression is asked for."""
        return AdamWStepper(model, optim) if self.config.train == "lrc" else None

    def _report(self, shapes: Shapes, kept: Mapping[str, int], context: Context) -> None:
        """Say what became of the target layers; a layer that stayed dense counts with its full rank."""
        facts = reduction_facts(shapes, kept)
        attempted, measured = self.config.err, facts["measured_err"]
        one_matrix = max(map(min, shapes.values())) / sum(map(min, shapes.values()))
        if abs(measured - attempted) > one_matrix:
            context.warn(f"the effective rank reduction is {measured:.4f}, not {attempted:.4f} as asked for")
        if facts["parameter_ratio_targets"] > 1:
            context.warn("the factors have more parameters than the matrices that they replace")
        trains = self.config.train == "lrc"
        trainable = f"both factors of {len(kept)} layers and all RMSNorm weights" if trains else "nothing"
        context.facts.update(facts, attempted_err=attempted, lrc=list(kept), trainable=trainable)
        context.ranks.update(kept)


def reduction_facts(shapes: Shapes, kept: Mapping[str, int]) -> dict[str, Any]:
    """Measured reduction (pruned ranks of factored layers over all ranks), mean kept ranks, size ratios.

    Multiply-adds per token of a linear layer are its weights, so both ratios of the targets are equal.
    """
    pruned = sum(min(shapes[name]) - rank for name, rank in kept.items())
    kinds: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        kinds.setdefault(kind_of(name), []).append(kept.get(name, min(shape)))
    weights = sum(kept[name] * sum(shape) if name in kept else prod(shape) for name, shape in shapes.items())
    ratio = weights / sum(map(prod, shapes.values()))
    return {
        "measured_err": pruned / sum(map(min, shapes.values())),
        "kept_rank_by_kind": {kind: sum(kept_ranks) / len(kept_ranks) for kind, kept_ranks in kinds.items()},
        "parameter_ratio_targets": ratio,
        "flop_ratio_targets": ratio,
    }


def _replace(model: nn.Module, name: str, up: Tensor, down: Tensor) -> None:
    """Put two factors in the place of a dense layer; they train exactly if it did."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    factored = factor(layer, up, down)
    factored.requires_grad_(layer.weight.requires_grad)
    model.set_submodule(name, factored)


def _train_factors_and_norms(model: nn.Module) -> None:
    """Freeze all but the weights of both factors of every factored layer and of every RMSNorm."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, FactoredLinear):
            module.down.weight.requires_grad_(True)
            module.up.weight.requires_grad_(True)
        elif type(module).__name__.endswith("RMSNorm"):
            module.requires_grad_(True)


def parameters(model: nn.Module) -> int:
    """The number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module) -> int:
    """Multiply-adds per token in all linear layers, the head included (half their FLOPs).

    The embedding lookup has none; attention scores depend on the context length and are left out.
    """
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
