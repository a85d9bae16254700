"""VeLoRA: layers that train keep a compressed copy of their input for the backward pass.

Another method trains them: `[velora, full]` for all parameters, `[lora, velora]` for the A of adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from harness.errors import UserError
from harness.factored import FactoredLinear
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.layers.subtoken import CoefficientLinear, VeLoRALinear, usual_size
from methods.parts.optim.adamw import TRAIN_OPTIONS
from methods.parts.targets import check_kinds

#: Which layer of a LLaMA block reads the same tensor as this one.
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
Positive = Annotated[int, Field(gt=0)]


class VeLoRAConfig(MethodConfig):
    """Hyperparameters of VeLoRA; kinds that need sizes of their own get a second `velora` in the stack."""

    num_groups: Positive | None = None
    """Sub-tokens per token (G). With neither this nor `subtoken_size`: the divisor of the layer's width
    nearest to 32 (the code's default) that leaves sub-tokens of at least 8 features."""

    subtoken_size: Positive | None = None
    """Features per sub-token (the paper's M), instead of `num_groups`. Size 1 is exact and saves nothing."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the weight gradient (velora_scale, in the paper's code only). Under Adam it acts through
    eps and clipping alone; with `state: groups` it is a factor sqrt(scale) of the step."""

    init: Literal["first_batch", "random"] = "first_batch"
    """Direction of each layer: the mean sub-token of the first training batch, or a random one."""

    state: Literal["weight", "groups"] = "weight"
    """`groups` trains a matrix (out, G) over the resting weight, now a buffer, for small optimizer states.
    Equal under SGD without weight decay. Under Adam entry j of a sub-token moves by sqrt(scale) |v_j| lr,
    not lr (`scale` = M makes the norms equal), and weight decay pulls towards the start."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("v_proj", "down_proj")
    """Kinds of layers whose input is compressed: A of an adapter, the first of two factors."""

    @model_validator(mode="after")
    def _one_size(self) -> VeLoRAConfig:
        if self.num_groups is not None and self.subtoken_size is not None:
            raise ValueError("num_groups and subtoken_size set the same size; give one of them")
        return self


class VeLoRA(Method):
    """Compress the inputs of layers that train; another method of the stack trains them."""

    Config = VeLoRAConfig
    config: VeLoRAConfig
    source = (
        "Miles et al., VeLoRA, NeurIPS 2024, arXiv 2405.17991, section 3. Departs from their code: gradients "
        "in closed form, coordinates in the dtype of the input (not float16), one v for all processes."
    )

    #: Training only; the method that trains may restrict it further.
    caps = Caps(stages=frozenset({"pretrain", "finetune"}), **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace the layers in place; report the bytes saved, and warn where nothing is saved."""
        generator = torch.Generator().manual_seed(context.seed)
        kind = VeLoRALinear if self.config.state == "weight" else CoefficientLinear
        for name, linear in self._chosen(model).items():
            layer = kind(linear, self._groups(name, linear.in_features), self.config.scale)
            if self.config.init == "random":
                layer.set_direction(torch.randn(layer.v.numel(), generator=generator))
            model.set_submodule(name, layer)
        _report(model, self.config.targets, context)
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Put plain linear layers back, in place."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, VeLoRALinear):
                model.set_submodule(name, layer.plain())
        return model

    def _chosen(self, model: nn.Module) -> dict[str, nn.Linear]:
        targets = self.config.targets
        check_kinds(targets, {kind for _, kind, _, _ in readers(model)})
        layers = {name: layer for name, kind, _, layer in readers(model) if kind in targets}
        if any(isinstance(layer, VeLoRALinear) for layer in layers.values()):
            raise UserError("velora: two in one stack have a target in common; name each kind in one of them")
        if not any(layer.weight.requires_grad for layer in layers.values()):
            raise UserError(f"velora: none of {', '.join(targets)} trains; choose targets that do")
        return {name: layer for name, layer in layers.items() if layer.weight.requires_grad}

    def _groups(self, name: str, width: int) -> int:
        divisors = [number for number in range(1, width + 1) if width % number == 0]
        given = self.config.num_groups or self.config.subtoken_size or usual_size(divisors)
        if given not in divisors:
            size = f"{'num_groups' if self.config.num_groups else 'subtoken_size'} {given}"
            allowed = ", ".join(map(str, divisors))
            raise UserError(f"velora: {size} does not divide {width}, the inputs of {name}; use {allowed}")
        return given if self.config.num_groups else width // given


def readers(model: nn.Module) -> Iterator[tuple[str, str, str, nn.Linear]]:
    """Yield each linear that reads a layer's input: its name, the layer's kind, the input's name, the linear.

    It is A of a layer with adapters and the first factor of a factored layer. The head is left out.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, linear in model.named_modules():
        wrapper, _, adapter = name.partition(".lora_A.")
        parent, _, part = wrapper.rpartition(".")
        factored = isinstance(model.get_submodule(parent), FactoredLinear)
        if isinstance(linear, nn.Linear) and linear is not head and (part == "down" or not factored):
            block, _, kind = (parent if factored else wrapper).rpartition(".")
            dropout = adapter and getattr(model.get_submodule(f"{wrapper}.lora_dropout.{adapter}"), "p", 0)
            yield name, kind, name if dropout else f"{block}.{SAME_INPUT.get(kind, kind)}", linear


def _report(model: nn.Module, targets: Collection[str], context: Context) -> None:
    """Report the bytes stored of the target layers' inputs for weight gradients; a tensor counts once."""
    done: list[tuple[str, str, VeLoRALinear]] = []
    alive: dict[str, list[str]] = {}  # tensors that another layer keeps whole, and which
    for _, kind, tensor, layer in readers(model):
        if not isinstance(layer, VeLoRALinear) and layer.weight.requires_grad:
            alive.setdefault(tensor, []).append(kind)
        elif isinstance(layer, VeLoRALinear) and kind in targets:
            done.append((kind, tensor, layer))
    whole = {tensor: layer.in_features * layer.weight.itemsize for _, tensor, layer in done}
    context.facts.update(
        compressed_layers=len(done),
        num_groups={kind: layer.groups for kind, _, layer in done},
        subtoken_size={kind: layer.v.numel() for kind, _, layer in done},
        saved_bytes_per_token_before=sum(whole.values()),
        saved_bytes_per_token_after=sum(layer.groups * layer.weight.itemsize for _, _, layer in done)
        + sum(whole[tensor] for tensor in whole.keys() & alive.keys()),
    )
    for kind, names in {kind: alive[tensor] for kind, tensor, _ in done if tensor in alive}.items():
        users = " and ".join(names)
        context.warn(f"velora: compressing {kind} alone saves nothing, its input stays alive for {users}")
