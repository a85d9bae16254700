"""Weights replaced by two factors of a lower rank: the replacement, its facts, and a base of methods.

A subclass of `LowRankCompression` only chooses the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from harness.config import OptimConfig, Share
from harness.errors import UnsupportedError, UserError
from harness.factored import FactoredLinear, factor, ranks, restructure
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.factors.svd_cache import SingularValues, singular_values, truncated_svd
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.targets import LINEAR_KINDS, Shapes, kind_of, shapes_of, target_linears


class LowRankCompressionConfig(MethodConfig):
    """Options of all low-rank compressions."""

    err: Share = 0.5
    """Effective rank reduction: the share of the ranks of all target matrices that is taken away."""

    train: Literal["lrc", "none"] = "lrc"
    """`lrc` trains the factors and all RMSNorm weights; `none` leaves training to a method on top."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers that take part; embeddings and the output head never do."""


class LowRankCompression(Method):
    """Factor linear layers by truncated SVD, and train the factors unless another method trains."""

    Config = LowRankCompressionConfig
    config: LowRankCompressionConfig

    @property
    def caps(self) -> Caps:
        """Return the stages that start from trained weights, and whether the factors are trained here."""
        because = "random weights have no small singular values to leave out"
        stages, trains = frozenset({"finetune", "compress"}), self.config.train != "none"
        return Caps(stages=stages, own_updates=trains, because=because, **TRAIN_OPTIONS)

    def choose_ranks(
        self, shapes: Shapes, values: Callable[[], SingularValues], context: Context
    ) -> dict[str, int]:
        """Return the rank of each layer to factor, by name; the others stay as they are.

        `shapes` are (out, in) of the target weights; `values` computes their singular values, a costly step.
        """
        raise NotImplementedError

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace the chosen layers by factors, in place; on the meta device by empty ones."""
        layers = target_linears(model, self.config.targets)
        if ranks(model) or any(type(layer) is not nn.Linear for layer in layers.values()):
            raise UserError("layers are factored already, or replaced; put one low-rank method first")
        shapes = shapes_of(layers)
        given = None if context.simulated is None else context.simulated.ranks
        if given is not None:
            for name, rank in given.items():
                if not 0 < rank <= min(shapes.get(name, (0,))):
                    raise UserError(f"the given rank {rank} of {name} fits no target layer of this model")
            chosen = dict(given)
        elif self.caps.value_dependent and any(layer.weight.is_meta for layer in layers.values()):
            raise UnsupportedError("the ranks depend on the values of the weights, and there are none")
        else:
            chosen = self.choose_ranks(shapes, partial(singular_values, layers, context), context)
        del layers  # so that each dense weight is freed when it is replaced
        ratios = replace_by_factors(
            model, chosen, lambda name, dense, rank: factor(dense, *truncated_svd(name, dense.weight, rank))
        )
        if self.config.train == "lrc":
            train_factors_and_norms(model)
        self._report(shapes, chosen, context)
        context.facts.update(ratios)
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper | None:
        """Return AdamW over factors and norms, or None when `train` is `none`."""
        return AdamWStepper(model, optim) if self.config.train == "lrc" else None

    def _report(self, shapes: Shapes, chosen: Mapping[str, int], context: Context) -> None:
        """Record ranks and facts; a layer that stayed dense counts with its full rank."""
        facts = reduction_facts(shapes, chosen)
        target, achieved = self.config.err, facts["measured_err"]
        one_matrix = max(map(min, shapes.values())) / sum(map(min, shapes.values()))
        if abs(achieved - target) > one_matrix:
            context.warn(f"the achieved rank reduction is {achieved:.4f}; the target was {target:.4f}")
        if facts["parameter_ratio_targets"] > 1:
            context.warn("the factors have more parameters than the matrices that they replace")
        trains = self.config.train == "lrc"
        trainable = f"both factors of {len(chosen)} layers and all RMSNorm weights" if trains else "nothing"
        context.facts.update(facts, attempted_err=target, lrc=list(chosen), trainable=trainable)
        context.ranks.update(chosen)


def replace_by_factors(
    model: nn.Module, ranks: Mapping[str, int], factorise: Callable[[str, nn.Linear, int], FactoredLinear]
) -> dict[str, float]:
    """Replace dense layers by factors one at a time, in place; on the meta device by empty factors.

    `factorise` makes the factors from a layer's name, the layer and its rank; they train if the layer did.
    Return the ratios of parameters and of multiply-adds of the whole model, after over before.
    """
    before = parameters(model), _multiplications(model)
    for name, rank in ranks.items():
        dense = model.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        if dense.weight.is_meta:
            restructure(model, {name: rank})
        else:
            factored = factorise(name, dense, rank)
            model.set_submodule(name, factored.requires_grad_(dense.weight.requires_grad))
    ratios = parameters(model) / before[0], _multiplications(model) / before[1]
    return {"parameter_ratio": ratios[0], "flop_ratio": ratios[1]}


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _multiplications(model: nn.Module) -> int:
    """Return the multiply-adds per token in all linear layers, the head included (half their FLOPs).

    The embedding lookup has none; attention scores depend on the context length and are left out.
    """
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def reduction_facts(shapes: Shapes, chosen: Mapping[str, int]) -> dict[str, Any]:
    """Return the achieved reduction (pruned ranks over all ranks), mean ranks by kind, and size ratios.

    Multiply-adds per token of a linear layer are its weights, so both ratios of the targets are equal.
    """
    pruned = sum(min(shapes[name]) - rank for name, rank in chosen.items())
    kinds: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        kinds.setdefault(kind_of(name), []).append(chosen.get(name, min(shape)))
    weights = sum(
        chosen[name] * sum(shape) if name in chosen else prod(shape) for name, shape in shapes.items()
    )
    ratio = weights / sum(map(prod, shapes.values()))
    return {
        "measured_err": pruned / sum(map(min, shapes.values())),
        "kept_rank_by_kind": {kind: sum(of_kind) / len(of_kind) for kind, of_kind in kinds.items()},
        "parameter_ratio_targets": ratio,
        "flop_ratio_targets": ratio,
    }


def train_factors_and_norms(model: nn.Module) -> None:
    """Freeze all but the weights of both factors of every factored layer and of every RMSNorm."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, FactoredLinear):
            module.down.weight.requires_grad_(True)
            module.up.weight.requires_grad_(True)
        elif type(module).__name__.endswith("RMSNorm"):
            module.requires_grad_(True)
