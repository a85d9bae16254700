"""The live meter against an independent truth, the CPU allocator as `torch.profiler` sees real training.

They agree to the byte but for two things that no operation makes and no GPU holds: a kernel on the CPU
turns a Python number into a tensor (8 bytes, and 4 more as float32), and activation checkpointing keeps
the state of the CPU's random generator (about 5 KB per checkpoint).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from harness.engine.measure.peak import LiveMeter

CPU = torch.device("cpu")
LAYERS = 2
NUMBER_BYTES = 8 + 4
Step = Callable[[], None]


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=256, num_key_value_heads=4, use_cache=False, **shape)
    return LlamaForCausalLM(config).train()


def training(net: nn.Module, optimizer: torch.optim.Optimizer | None, tokens: int = 256) -> Step:
    """Steps on sequences of at most 64 tokens; 256 tokens peak in the backward pass, 8 in the update."""
    ids = torch.zeros(tokens, dtype=torch.long).view(-1, min(tokens, 64))

    def step() -> None:
        net(input_ids=ids, labels=ids).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def adamw(foreach: bool = False, tokens: int = 256) -> Step:
    net = model()
    return training(net, torch.optim.AdamW(net.parameters(), foreach=foreach), tokens)


def adapters_on_frozen_weights() -> Step:
    net = model().requires_grad_(False)
    for layer in net.model.layers:
        layer.mlp.up_proj = Adapter(layer.mlp.up_proj, rank=4)
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj, rank=4)
    return training(net, torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), foreach=False))


def layerwise() -> Step:
    net = model()
    optimizers = {p: torch.optim.AdamW([p], foreach=False) for p in net.parameters()}

    def update(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(update)
    return training(net, None, tokens=8)


def custom_function() -> Step:
    net = model()
    for layer in net.model.layers:
        layer.mlp.up_proj = Compressed(layer.mlp.up_proj)
    return training(net, torch.optim.AdamW(net.parameters(), foreach=False))


def checkpointed(keep_random_state: bool) -> Step:
    net = model()
    for layer in net.model.layers:
        checkpoint_calls_of(layer, keep_random_state)
    return training(net, torch.optim.AdamW(net.parameters(), foreach=False))


def checkpoint_calls_of(layer: nn.Module, keep_random_state: bool) -> None:
    plain = layer.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": keep_random_state}
    layer.forward = lambda *args, **kwargs: checkpoint(plain, *args, **options, **kwargs)


CASES: dict[str, Callable[[], Step]] = {
    "adamw": adamw,
    "adamw, few tokens": lambda: adamw(tokens=8),
    "adamw foreach, few tokens": lambda: adamw(foreach=True, tokens=8),
    "adapters on frozen weights": adapters_on_frozen_weights,
    "hooks that free gradients, few tokens": layerwise,
    "custom autograd function": custom_function,
    "activation checkpointing": lambda: checkpointed(keep_random_state=False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_live_meter_agrees_with_the_profiler_to_the_byte(case: str) -> None:
    make = CASES[case]
    metered = metered_peaks(make())
    assert metered == metered_peaks(make()), "the same training again must give the same bytes"
    for ours, truth in zip(metered, profiled_peaks(make), strict=True):
        assert ours == truth if "few tokens" not in case else truth - NUMBER_BYTES <= ours <= truth


def test_the_cases_differ_where_their_memory_does() -> None:
    foreach, adam, hooks = (
        metered_peaks(CASES[case]())[1]
        for case in (
            "adamw foreach, few tokens",
            "adamw, few tokens",
            "hooks that free gradients, few tokens",
        )
    )
    assert foreach > adam > hooks


def test_checkpointing_differs_by_no_more_than_the_state_of_the_random_generator() -> None:
    def make() -> Step:
        return checkpointed(keep_random_state=True)

    allowed = (LAYERS + 1) * torch.get_rng_state().nbytes  # one kept per layer, one while recomputing
    for ours, truth in zip(metered_peaks(make()), profiled_peaks(make), strict=True):
        assert truth - allowed <= ours <= truth


def metered_peaks(step: Step) -> tuple[int, int]:
    """Growth over the start of the first step and of both of two steps, bytes."""
    step_peaks = []
    with LiveMeter(CPU).window() as window:
        before = window.peak_allocated_bytes
        for _ in range(2):
            step()
            step_peaks.append(window.peak_allocated_bytes - before)
    return step_peaks[0], step_peaks[1]


def profiled_peaks(make: Callable[[], Step]) -> tuple[int, int]:
    """The same from the allocator's own events."""
    gc.collect()
    step = make()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        with record_function("MARK"):
            pass
        step()
        with record_function("MARK"):
            pass
        step()
    assert prof.profiler is not None
    events: list[Any] = prof.profiler.kineto_results.events()
    start, second = sorted(event.start_ns() for event in events if event.name() == "MARK")
    allocations = sorted(
        ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"),
        key=lambda pair: pair[0],
    )
    total = peak = first_peak = 0
    for moment, size in allocations:
        if moment < start:
            continue
        if moment > second and not first_peak:
            first_peak = peak
        total += size
        peak = max(peak, total)
    return first_peak, peak


class Adapter(nn.Module):
    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Compressed(nn.Module):
    """Keeps a quarter of its input for the backward pass and rebuilds the rest there."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight

    def forward(self, x: Tensor) -> Tensor:
        return _CompressedProduct.apply(x, self.weight)


class _CompressedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x[..., ::4].clone(), weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        kept, weight = ctx.saved_tensors
        x = kept.repeat_interleave(4, dim=-1)
        flat = grads[0].reshape(-1, weight.shape[0])
        return grads[0] @ weight, flat.T @ x.reshape(-1, weight.shape[1])
