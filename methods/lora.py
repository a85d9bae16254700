"""LoRA: the model is frozen, and beside each chosen linear layer a product of two thin matrices trains.

y = W x + (alpha / rank) B A x with A (rank, in) random and B (out, rank) zero, so that training
starts from the model as it is. The adapters are those of the `peft` package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from harness.config import OptimConfig
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.quantisation.tensor import plain_weights
from methods.parts.targets import LINEAR_KINDS, clamp_ranks, shapes_of, target_linears

if TYPE_CHECKING:  # peft takes seconds to import, and reading the options does not need it
    from peft import LoraConfig


class LoRAConfig(MethodConfig):
    """Hyperparameters of LoRA."""

    rank: Annotated[int, Field(gt=0)] = 8
    """Inner width of each adapter; a matrix with a shorter side gets that side, with a warning."""

    alpha: Annotated[float, Field(gt=0)] | None = None
    """Numerator of the scaling alpha / rank; None is `rank`, hence scaling 1 (paper, section 4.1)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the adapters."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers; of a factored layer both factors get an adapter. Paper: q and v only."""

    others: Literal["frozen", "train"] = Field(default="frozen", exclude_if=lambda value: value == "frozen")
    """What has no adapter (embeddings, norms, head): `frozen` as in fine-tuning, or `train`, for
    pre-training beside fixed random matrices (the LoRA baseline of GaLore's table 2)."""


class LoRA(Method):
    """Train only the adapters; `export` adds them into the weights."""

    Config = LoRAConfig
    config: LoRAConfig
    libraries = ("peft",)
    source = (
        "Hu et al., LoRA, ICLR 2022, arXiv 2106.09685, eq. 3. Departs from it in the default targets: all "
        "seven linears of a block, as the baselines of GaLore and WeLore."
    )

    @property
    def caps(self) -> Caps:
        """Return training only: the weights stay whole."""
        return Caps(stages=frozenset({"pretrain", "finetune"}), **TRAIN_OPTIONS)

    @property
    def scaling(self) -> float:
        """Return the factor of the adapters' output, the same for all matrices, clamped ranks included."""
        return (self.config.alpha or self.config.rank) / self.config.rank

    def layers(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Return the layers that get an adapter, by full name."""
        return target_linears(model, self.config.targets)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Freeze the model and put an adapter around each target, in place, in the target's dtype."""
        from peft import inject_adapter_in_model

        shapes = shapes_of(self.layers(model))
        ranks = clamp_ranks("lora", self.config.rank, shapes, context)
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # peft draws the adapters on the CPU
            torch.default_generator.manual_seed(context.seed)
            inject_adapter_in_model(self._peft_config(ranks), model)
        if self.config.others == "train":
            for name, parameter in model.named_parameters():
                if ".base_layer." not in name:
                    parameter.requires_grad_(True)
        others = " and what has none" if self.config.others == "train" else ""
        context.ranks.update({f"{name}.lora": rank for name, rank in ranks.items()})
        context.facts.update(
            targets=len(ranks),
            alpha=self.scaling * self.config.rank,
            scaling=self.scaling,
            trainable=f"the adapters of {len(ranks)} linear layers{others}",
        )
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        """Return AdamW over the adapters."""
        return AdamWStepper(model, optim)

    def export(self, model: nn.Module) -> nn.Module:
        """Add each adapter into its weight and put the plain linear layers back, in place."""
        from peft.tuners.lora import LoraLayer

        for name, layer in list(plain_weights(model).named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        return model

    def _peft_config(self, ranks: Mapping[str, int]) -> LoraConfig:
        """Name targets in full; give a clamped rank a smaller alpha, so that its scaling stays."""
        from peft import LoraConfig

        clamped = {re.escape(name): rank for name, rank in ranks.items() if rank < self.config.rank}
        return LoraConfig(
            r=self.config.rank,
            lora_alpha=self.scaling * self.config.rank,
            lora_dropout=self.config.dropout,
            target_modules=list(ranks),
            rank_pattern=clamped,
            alpha_pattern={pattern: self.scaling * rank for pattern, rank in clamped.items()},
        )
