"""What a compression can follow and what it cannot, each said in one line."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.factored import FactoredLinear, ranks
from harness.method import Context
from harness.plugins import build
from methods.parts.factors.compression import Compression
from tests.support.tiny import TinyText, tiny_llama

TAKEN = "layers are factored already, replaced or quantised; put the compression first in the stack"


def stacked(*stack: tuple[str, dict[str, Any]], text: Any = None) -> Any:
    model: Any = tiny_llama()
    for name, options in stack:
        context = Context(seed=1, updates=8, calibration=text or TinyText())
        model = build(name, options).prepare(model, context)
    return model


@pytest.mark.parametrize("compression", ["compress", "svdllm"])
@pytest.mark.parametrize(
    "below",
    [
        ("welore", {"err": 0.5, "train": "none"}),
        ("compress", {}),
        ("qlora", {"rank": 4, "block": 8}),
        ("lora", {"rank": 4}),
        ("lotr", {"rank": 4}),
        ("sltrain", {"rank": 8, "delta": 0.1}),
        ("lowrank", {"rank": 8}),
        ("int8", {}),
    ],
    ids=lambda below: below[0],
)
def test_layers_that_are_factored_quantised_or_replaced_are_refused(
    below: tuple[str, dict[str, Any]], compression: str
) -> None:
    with pytest.raises(UserError) as caught:
        stacked(below, (compression, {}))
    assert str(caught.value) == TAKEN


@pytest.mark.parametrize(
    "stack",
    [("compress", {}), ("compress", {"factoriser": "svd"}), ("svdllm", {"update": "closed"})],
    ids=str,
)
def test_dense_weights_are_freed_block_after_block(
    stack: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_llama(layers=4)
    dense = [weakref.ref(layer.mlp.up_proj.weight) for layer in model.model.layers]
    alive: dict[str, int] = {}
    replace = Compression._replace

    def watched(self: Any, model: Any, name: str, *arguments: Any) -> Any:
        alive[name] = sum(weight() is not None for weight in dense)
        return replace(self, model, name, *arguments)

    monkeypatch.setattr(Compression, "_replace", watched)
    build(stack[0], stack[1]).prepare(model, Context(calibration=TinyText()))
    assert [alive[f"model.layers.{block}.mlp.gate_proj"] for block in range(4)] == [4, 3, 2, 1]


def test_without_text_a_compression_that_needs_any_is_refused_and_one_that_needs_none_is_not() -> None:
    for name in ("compress", "svdllm"):
        with pytest.raises(UserError, match=rf"^{name}: this needs calibration text, and the run has none$"):
            build(name, {}).prepare(tiny_llama(), Context())
    assert ranks(build("compress", {"factoriser": "svd"}).prepare(tiny_llama(), Context()))


@pytest.mark.parametrize("above", ["qlora", "lora", "peft", "galore", "velora"])
def test_what_trains_on_top_leaves_the_ranks(above: str) -> None:
    options: dict[str, Any] = {
        "lora": {"rank": 4},
        "qlora": {"rank": 4, "block": 8},
        "peft": {"type": "LOHA", "r": 4},
        "galore": {"rank": 8},
        "velora": {"num_groups": 4},
    }[above]
    alone = stacked(("compress", {"reduction": 0.5}))
    model = stacked(("compress", {"reduction": 0.5}), (above, options))
    ids = torch.arange(12)[None]
    assert model(input_ids=ids).logits.isfinite().all()
    assert ranks(model) == ranks(alone)
    assert sum(isinstance(layer, FactoredLinear) for layer in model.modules()) == 14
