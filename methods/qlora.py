"""QLoRA: LoRA beside weights that are stored as NormalFloat, in about 4 bits each, and do not train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.method import Caps, Context
from methods.lora import LoRA, LoRAConfig
from methods.parts.optim.adamw import TRAIN_OPTIONS
from methods.parts.quantisation.layers import check_divides, check_unquantised
from methods.parts.quantisation.normal_float import Layout, normal_floats
from methods.parts.quantisation.tensor import Quantised
from methods.parts.targets import Shapes, shapes_of, target_linears

Bits = Literal[2, 3, 4, 8]
Positive = Annotated[int, Field(gt=0)]


class QLoRAConfig(LoRAConfig):
    """Hyperparameters of QLoRA: those of LoRA, and how the targets are stored."""

    bits: Bits = 4
    """Bits of a weight."""

    block: Positive = 64
    """Weights, one after the other in the rows of a matrix, that share a scale, the largest magnitude."""

    scale_bits: Bits = 8
    """Bits of a scale (double quantisation)."""

    superblock: Positive = 256
    """Blocks whose scales share one number, the largest of them."""

    scale_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How that number is stored."""


class QLoRA(LoRA):
    """Store the targets as NormalFloat and train adapters beside them; `export` adds these to the values."""

    Config: ClassVar[type[LoRAConfig]] = QLoRAConfig
    config: QLoRAConfig
    name: ClassVar[str] = "qlora"
    source = (
        "Dettmers et al., QLoRA, NeurIPS 2023, arXiv 2305.14314, section 3. Departs from it in scales of "
        "equally spaced values from the smallest to the largest, as in LQ-LoRA (arXiv 2311.12023); theirs "
        "are of dynamic 8 bits around their mean. The codebook is theirs."
    )

    @property
    def caps(self) -> Caps:
        """Return the stages that start from trained weights."""
        because = "random weights that never train are of no use in few bits"
        return Caps(stages=frozenset({"finetune", "compress"}), because=because, **TRAIN_OPTIONS)

    @property
    def layout(self) -> Layout:
        """Return how a matrix is stored."""
        config = self.config
        return Layout(config.bits, config.scale_bits, config.scale_dtype, config.block, config.superblock)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Store each target in few bits, and put an adapter around it, in place."""
        layers = self.unquantised(model)
        self.check_blocks(shapes_of(layers), self.config.block)
        for layer in layers.values():
            store(layer, normal_floats(layer.weight, self.layout))
        self.report_bits(layers, context)
        return super().prepare(model, context)

    def unquantised(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Return the targets; UserError where one is stored in few bits already."""
        layers = target_linears(model, self.config.targets)
        check_unquantised(self.name, layers)
        return layers

    def check_blocks(self, shapes: Shapes, block: int) -> None:
        """Raise UserError for the first matrix that blocks do not divide."""
        check_divides(self.name, "block", block, shapes, usual=64)

    def report_bits(self, layers: Mapping[str, nn.Linear], context: Context) -> None:
        """Record the bits of a weight of the targets as they are stored, without adapters and with them."""
        weights = [layer.weight for layer in layers.values()]
        elements = sum(weight.numel() for weight in weights)
        stored = sum(8 * weight.stored_bytes for weight in weights if isinstance(weight, Quantised))
        beside = sum(
            min(self.config.rank, *weight.shape) * sum(weight.shape) * torch.finfo(weight.dtype).bits
            for weight in weights
        )
        context.facts.update(
            bits_per_weight=round(stored / elements, 4),
            bits_with_adapters=round((stored + beside) / elements, 4),
        )


def store(layer: nn.Linear, stored: Quantised) -> None:
    """Put a quantised weight that does not train in the place of a layer's."""
    layer.weight = nn.Parameter(stored, requires_grad=False)


@torch.no_grad()
def start_adapters(model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], scaling: float) -> None:
    """Let adapters start as factors (out, rank) and (rank, in), by layer, so that they add their product."""
    for name, (left, right) in factors.items():
        adapter: Any = model.get_submodule(name)
        adapter.lora_A["default"].weight.copy_(right / scaling**0.5)
        adapter.lora_B["default"].weight.copy_(left / scaling**0.5)
