"""What a compression can follow and what it cannot, each said in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.factored import FactoredLinear, ranks
from harness.method import Context
from harness.plugins import build
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
