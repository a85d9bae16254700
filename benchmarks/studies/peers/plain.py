"""AdamW beside torch's own, LoRA beside peft, and training steps beside the loop that anyone would write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.studies.peers.bench import Case, Duel, agreement
from benchmarks.studies.peers.galore import PEER, SCALE, peer_optimizer
from harness.config import OptimConfig
from harness.engine.models.load import shape_config
from harness.method import Context, Stepper
from harness.plugins import build
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.targets import LINEAR_KINDS, target_linears

TARGET = 1.02
LR = 1e-3
LORA_RANK, GALORE_RANK = 8, 32
STEPS = 3


def cases(quick: bool) -> Iterator[Case]:
    """Yield AdamW alone on the tensors of a model, and whole training steps."""
    large, shape, batch = ("nano", "nano", (1, 4)) if quick else ("60m", "9m", (4, 128))
    tokens = f"LLaMA {shape}, {batch[0]} x {batch[1]} tokens"
    step, torch_adamw = "training step", "torch AdamW, fused"
    yield Case("full", "AdamW", f"LLaMA {large}", torch_adamw, partial(adamw, large), TARGET)
    yield Case("full", step, tokens, f"loop with {torch_adamw}", partial(full, shape, batch), TARGET)
    yield Case("lora", step, tokens, "peft, torch AdamW", partial(lora, shape, batch), TARGET)
    yield Case("galore", step, tokens, f"loop with {PEER}", partial(galore, shape, batch), TARGET)


# ------------------------------------------------------------------------------------------ one thing
def adamw(shape: str) -> Duel:
    """Update all tensors of a model from the same gradients."""
    models = [new_model(shape) for _ in range(2)]
    for model in models:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    stepper = AdamWStepper(models[0], OptimConfig(lr=LR))
    optimizer = torch.optim.AdamW(models[1].parameters(), lr=LR, weight_decay=0.0, fused=True)
    for _ in range(STEPS):
        stepper.step()
        optimizer.step()
    mine, theirs = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    return Duel(stepper.step, optimizer.step, {"weights differ by": agreement(mine, theirs, 1e-6)})


# ------------------------------------------------------------------------------- whole training steps
def full(shape: str, batch: tuple[int, int]) -> Duel:
    """Train every parameter by AdamW."""
    theirs = new_model(shape)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=0.0, fused=True)
    return duel(our_step(shape, batch, "full", {}), loop(theirs, optimizer, batch))


def lora(shape: str, batch: tuple[int, int]) -> Duel:
    """Train adapters of the same weights on all linear layers of the blocks."""
    theirs = new_model(shape)
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=list(LINEAR_KINDS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as ours draws them for seed 0
        wrapped = get_peft_model(theirs, config)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    return duel(our_step(shape, batch, "lora", {"rank": LORA_RANK}), loop(wrapped, optimizer, batch))


def galore(shape: str, batch: tuple[int, int]) -> Duel:
    """Train by GaLore between two refreshes; both sides find their subspaces in the first step."""
    theirs = new_model(shape)
    layers = target_linears(theirs, LINEAR_KINDS).values()
    projected = [layer.weight for layer in layers]
    chosen = set(map(id, projected))
    plain = [parameter for parameter in theirs.parameters() if id(parameter) not in chosen]
    rank = min(GALORE_RANK, theirs.config.hidden_size)
    optimizer = peer_optimizer(plain, projected, rank)
    options = {"rank": rank, "period": 10**9, "scale": SCALE, "arithmetic": "official", "signs": "free"}
    eps = optimizer.defaults["eps"]
    return duel(our_step(shape, batch, "galore", options, eps=eps), loop(theirs, optimizer, batch))


def new_model(shape: str) -> Any:
    """Return a LLaMA with the same random weights every time."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(shape_config(shape)).train()


def our_step(
    shape: str, batch: tuple[int, int], name: str, options: dict[str, Any], **optim: Any
) -> Callable[[], Tensor]:
    """Return a training step as the harness does it; it returns the loss."""
    method = build(name, options)
    model: Any = method.prepare(new_model(shape), Context(seed=0))
    stepper = method.stepper(model, OptimConfig(lr=LR, **optim))
    assert isinstance(stepper, Stepper)
    return training_step(model, stepper, lambda: stepper.set_lr(LR), batch)


def loop(model: Any, optimizer: torch.optim.Optimizer, batch: tuple[int, int]) -> Callable[[], Tensor]:
    """Return the training step that anyone would write; it returns the loss."""

    def set_lr() -> None:
        for group in optimizer.param_groups:
            group["lr"] = LR

    return training_step(model, optimizer, set_lr, batch)


def training_step(
    model: Any, optimizer: Any, set_lr: Callable[[], None], batch: tuple[int, int]
) -> Callable[[], Tensor]:
    """Return a training step on the same random ids (sequences, length) every time; it returns the loss."""
    ids = torch.randint(model.config.vocab_size, batch, generator=torch.Generator().manual_seed(2))

    def step() -> Tensor:
        set_lr()
        loss: Tensor = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def duel(ours: Callable[[], Tensor], peer: Callable[[], Tensor], tolerance: float = 1e-4) -> Duel:
    """Return both steps, once their first losses have been compared."""
    mine, theirs = (torch.stack([step() for _ in range(STEPS)]) for step in (ours, peer))
    return Duel(ours, peer, {f"losses of {STEPS} steps differ by": agreement(mine, theirs, tolerance)})
