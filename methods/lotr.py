"""LoTR: the model is frozen, and layers of a group share the outer factors of their low-rank updates.

y = W x + (alpha / rank) L C R x with L (out, rank) and R (rank, in) of all layers of a group, and C (rank,
rank) of each layer. A group of k layers trains rank (out + in) + k rank^2 numbers; LoRA trains
k rank (out + in). C begins at zero, so that training starts from the model as it is, and L and R move from
the second update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.layers.shared_tucker import SharedTuckerLinear
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.quantisation.tensor import plain_weights
from methods.parts.targets import (
    LINEAR_KINDS,
    clamp_ranks,
    random_stream,
    shapes_of,
    target_linears,
)


class LoTRConfig(MethodConfig):
    """Hyperparameters of LoTR."""

    rank: Annotated[int, Field(gt=0)] = 16
    """Inner width of each update; matrices with a shorter side get that side, with a warning."""

    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Numerator of the scaling alpha / rank (code: `scale`)."""

    share: Literal["kind", "shape"] = "kind"
    """What forms a group: layers of one `kind`, such as all q_proj, which must have one shape, or all of one
    `shape`, such as q_proj and v_proj (paper)."""

    init: Literal["normal", "scaled"] = "normal"
    """Standard deviation of L and R: 1 (code), which makes the first gradients of C as large as the square
    root of the widths' product, or `scaled`, 1 over the square root of the width that a factor maps."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers. Paper: q and v only."""


class LoTR(Method):
    """Train only the factors; `export` adds the updates into the weights."""

    Config = LoTRConfig
    config: LoTRConfig
    name = "lotr"
    source = (
        "Bershatsky et al., LoTR, 2024, arXiv 2402.01376. Departs from it in the default targets and groups: "
        "all seven linears of a block, one group for each kind."
    )
    #: Training only: the weights stay whole.
    caps = Caps(stages=frozenset({"finetune"}), **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Freeze the model and put an update beside each target, in place, in the target's dtype."""
        layers = target_linears(model, self.config.targets)
        ranks = clamp_ranks(self.name, self.config.rank, shapes_of(layers), context)
        model.requires_grad_(False)
        groups = self._groups(layers)
        for group, members in groups.items():
            first = next(iter(members))
            left, right = self._factors(layers[first], ranks[first], context.seed, group)
            for name, layer in members.items():
                scaling = self.config.alpha / self.config.rank
                model.set_submodule(name, SharedTuckerLinear(layer, left, right, scaling))
        context.ranks.update({f"{name}.lotr": rank for name, rank in ranks.items()})
        context.facts.update(
            targets=len(layers),
            groups=len(groups),
            scaling=self.config.alpha / self.config.rank,
            trainable=f"the updates of {len(layers)} linear layers",
        )
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        """Return AdamW over the factors, each shared one once."""
        return AdamWStepper(model, optim)

    def export(self, model: nn.Module) -> nn.Module:
        """Add each update into its weight and put the plain linear layers back, in place."""
        for name, layer in list(plain_weights(model).named_modules()):
            if isinstance(layer, SharedTuckerLinear):
                model.set_submodule(name, layer.merged())
        return model

    def _groups(self, layers: Mapping[str, nn.Linear]) -> dict[str, dict[str, nn.Linear]]:
        """Return the members of each group; UserError for one whose layers are of several shapes."""
        groups: dict[str, dict[str, nn.Linear]] = {}
        for name, layer in layers.items():
            shape = " x ".join(map(str, layer.weight.shape))
            key = shape if self.config.share == "shape" else re.sub(r"\d+", "*", name)
            groups.setdefault(key, {})[name] = layer
        for key, members in groups.items():
            if len(shapes := {tuple(layer.weight.shape) for layer in members.values()}) > 1:
                raise UserError(
                    f"lotr: layers {key} have {len(shapes)} shapes, so they cannot share factors; "
                    "set share: shape"
                )
        return groups

    def _factors(
        self, like: nn.Linear, rank: int, seed: int, group: str
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """Draw L and R on the CPU in float32, from streams of the seed and the group."""
        outputs, inputs = like.weight.shape
        drawn = []
        for index, (shape, width) in enumerate([((outputs, rank), outputs), ((rank, inputs), inputs)]):
            generator = random_stream(seed, group, index, torch.device("cpu"))
            factor = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
            deviation = width**-0.5 if self.config.init == "scaled" else 1.0
            drawn.append(nn.Parameter((deviation * factor).to(like.weight)))
        return drawn[0], drawn[1]
