"""What the methods share that replace weights by two factors of a lower rank and may train these.

A method of this kind decides which layers are factored and to which rank (`choose_ranks`); the rest
is here: decomposition, replacement, what is trainable, and the facts for the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from harness.config import OptimConfig, Share
from harness.errors import UnsupportedError, UserError
from harness.factored import FactoredLinear, factor, ranks, restructure
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.factors.sizes import Shapes, multiplications, parameters, reduction_facts
from methods.parts.factors.svd_cache import AskForValues, factors, singular_values
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.targets import LINEAR_KINDS, target_linears


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

    def choose_ranks(self, shapes: Shapes, values: AskForValues, context: Context) -> dict[str, int]:
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
        given = None if context.simulated is None else context.simulated.ranks
        if on_meta and self.caps.value_dependent and given is None:
            raise UnsupportedError("the ranks depend on the values of the weights, and there are none")
        values = partial(singular_values, layers, context)
        kept = self.choose_ranks(shapes, values, context) if given is None else self._given(shapes, given)
        del layers, values  # so that each dense weight is freed when it is replaced
        if on_meta:
            restructure(model, kept)
        else:
            for name, rank in kept.items():
                _replace(model, name, rank)
        if self.config.train == "lrc":
            _train_factors_and_norms(model)
        self._report(shapes, kept, context)
        context.facts["parameter_ratio"] = parameters(model) / sizes[0]
        context.facts["flop_ratio"] = multiplications(model) / sizes[1]
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper | None:
        """AdamW over factors and norms, or None where only compression is asked for."""
        return AdamWStepper(model, optim) if self.config.train == "lrc" else None

    def _given(self, shapes: Shapes, given: Mapping[str, int]) -> dict[str, int]:
        """Ranks from elsewhere, for a simulation; UserError for a rank that fits no target."""
        for name, rank in given.items():
            if not 0 < rank <= min(shapes.get(name, (0,))):
                raise UserError(f"the given rank {rank} of {name} fits no target layer of this model")
        return dict(given)

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


def _replace(model: nn.Module, name: str, rank: int) -> None:
    """Put two factors in the place of a dense layer; they train exactly if it did."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    factored = factor(layer, *factors(name, layer.weight, rank))
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
