"""What every registered method must keep: the contract of harness/method.py, checked from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig, Run, TrainConfig
from harness.engine.contract.checks import CHECKS, NotTried
from harness.engine.contract.subject import Subject
from harness.engine.run import checks
from harness.engine.run.prepare import find_stepper
from harness.errors import UnsupportedError, UserError
from harness.method import Context, Method, Stepper, stack_caps
from harness.plugins import build
from harness.registry import REGISTRY
from tests.support.tiny import TinyText, logits, tiny_llama, train

STEPS = 3
UPDATES = 8
DEFAULT = OptimConfig(lr=1e-2, weight_decay=0.01, clip=1.0)
PER_LAYER = OptimConfig(lr=1e-2, weight_decay=0.01, per_layer=True)
EIGHT_BITS = OptimConfig(lr=1e-2, weight_decay=0.01, per_layer=True, state_bits=8)
SIXTEEN_BITS = OptimConfig(lr=1e-2, weight_decay=0.01, clip=1.0, state_bits=16)

LORA = ("lora", {"rank": 4})
GALORE = ("galore", {"rank": 8, "period": 2})  # so that step 3 lies inside an interval
ADARANKGRAD = ("adarankgrad", {"rank": 8, "period": 2, "energy": 0.8})
APOLLO = ("apollo", {"rank": 8, "period": 2})
FIRA = ("fira", {"rank": 8, "period": 2})
LISA = ("lisa", {"layers": 1, "interval": 2})
OWLORE = ("owlore", {**LISA[1], **GALORE[1], "sampling": "decrease"})
INT8 = ("int8", {})
QGALORE = ("qgalore", {"rank": 8, "period": 2, "group": 128})
VELORA = ("velora", {"num_groups": 4})
QLORA = ("qlora", {"rank": 4, "block": 8})
LQLORA = ("lqlora", {"rank": 4, "bits": 3, "block": 16, "turns": 4})
RELORA = ("relora", {"rank": 4, "alpha": 4, "period": 2, "warmup": 4, "kept": 0})
SLTRAIN = ("sltrain", {"rank": 8, "delta": 0.1})
LORAPRUNE = ("loraprune", {"rank": 4, "period": 2, "updates": 3, "exempt_last": 0, "ratio": 0.5})
HALVED = ("compress", {"reduction": 0.5})
STAGES = ("svdllm", {"reduction": 0.5, "train": "stages", "adapter_rank": 4})
BOLACO = (
    "bolaco",
    {"allocator": {"type": "bayes", "evaluations": 4}, "multiple": 1, "train": "scales", "start": 1.0},
)
COMPRESSED = ("welore", {"err": 0.5, "train": "none"})


@dataclass(frozen=True)
class Case:
    """A stack of methods with their options, and how it is trained."""

    stack: Sequence[tuple[str, dict[str, Any]]]
    optim: OptimConfig = DEFAULT

    def methods(self) -> list[Method]:
        """The same ones each time: a method may keep what `prepare` found for `stepper`."""
        return self._methods

    @cached_property
    def _methods(self) -> list[Method]:
        return [build(name, options) for name, options in self.stack]


CASES = {
    "full": Case([("full", {})]),
    "full, 16 bits": Case([("full", {})], SIXTEEN_BITS),
    "full, 8 bits per layer": Case([("full", {})], EIGHT_BITS),
    "lora": Case([("lora", {"rank": 4, "dropout": 0.1})]),
    "lora, others too": Case([("lora", {"rank": 4, "others": "train"})], PER_LAYER),
    "peft: DoRA": Case([("peft", {"type": "DORA", "r": 4})]),
    "peft: OFT per layer": Case([("peft", {"type": "OFT", "oft_block_size": 8})], PER_LAYER),
    "welore + peft: LoHa": Case([COMPRESSED, ("peft", {"type": "LOHA", "r": 4})]),
    "lotr": Case([("lotr", {"rank": 4})]),
    "lotr, by shape, per layer": Case([("lotr", {"rank": 4, "share": "shape", "init": "scaled"})], PER_LAYER),
    "welore + lotr": Case([COMPRESSED, ("lotr", {"rank": 4, "share": "shape"})]),
    "qlora": Case([QLORA]),
    "qlora, 8 bits per layer": Case([QLORA], EIGHT_BITS),
    "welore + qlora": Case([COMPRESSED, QLORA]),
    "qlora + velora": Case([QLORA, VELORA]),
    "lqlora": Case([LQLORA]),
    "lqlora, 8 bits per layer": Case([LQLORA], EIGHT_BITS),
    "lqlora, budget": Case([("lqlora", {"rank": 4, "budget": 3.5, "turns": 2})]),
    "welore + lqlora": Case([COMPRESSED, ("lqlora", {**LQLORA[1], "block": 8})]),
    "lqlora + velora": Case([LQLORA, VELORA]),
    "relora": Case([RELORA]),
    "relora, states in part, 16 bits": Case([("relora", {**RELORA[1], "kept": 0.1})], SIXTEEN_BITS),
    "relora, 8 bits per layer": Case([RELORA], EIGHT_BITS),
    "int8 + relora": Case([INT8, RELORA]),
    "uniform": Case([("uniform", {})]),
    "welore": Case([("welore", {})]),
    "compress, lrc": Case([("compress", {"train": "lrc"})]),
    "compress by components + lora": Case([("compress", {"factoriser": "pca", "reduction": 0.5}), LORA]),
    "compress + galore": Case([("compress", {"factoriser": "asvd"}), GALORE]),
    "compress by outliers, lrc": Case(
        [("compress", {"allocator": {"type": "owl", "threshold": 2}, "train": "lrc"})]
    ),
    "compress by a threshold + lora": Case([("compress", {"allocator": "welore", "reduction": 0.4}), LORA]),
    "lord + lora": Case([("lord", {"multiple": 2}), LORA]),
    "compress + peft: DoRA": Case([HALVED, ("peft", {"type": "DORA", "r": 4})]),
    "compress + lotr": Case([HALVED, ("lotr", {"rank": 4, "share": "shape"})]),
    "compress + qlora": Case([HALVED, QLORA]),
    "compress + velora + full": Case([HALVED, VELORA, ("full", {})]),
    "compress + optim": Case([HALVED, ("optim", {"type": "Muon"})]),
    "svdllm in stages": Case([STAGES]),
    "svdllm in stages, the other order, 8 bits per layer": Case(
        [("svdllm", {**STAGES[1], "first": "down"})], EIGHT_BITS
    ),
    "svdllm, closed update + lora": Case([("svdllm", {"update": "closed", "reduction": 0.5}), LORA]),
    "asvd + lora": Case([("asvd", {"allocator": {"type": "strs", "candidates": [0.5, 0.9]}}), LORA]),
    "bolaco, scales, 16 bits": Case([BOLACO], SIXTEEN_BITS),
    "bolaco, scales per layer": Case([BOLACO], PER_LAYER),
    "welore + lora": Case([COMPRESSED, LORA]),
    "welore + galore": Case([COMPRESSED, GALORE]),
    "lorap": Case([("lorap", {"sparsity": 0.5}), ("full", {})]),
    "lorap + lora": Case([("lorap", {"sparsity": 0.3}), LORA]),
    "lorap, dense until its export + lora": Case([("lorap", {"sparsity": 0.6, "added_rank": 4}), LORA]),
    "lorap + galore": Case([("lorap", {"sparsity": 0.4}), GALORE]),
    "loraprune": Case([LORAPRUNE]),
    "loraprune, blocks exempt, 16 bits": Case(
        [("loraprune", {**LORAPRUNE[1], "updates": 8, "exempt_last": 1})], SIXTEEN_BITS
    ),
    "galore": Case([GALORE]),
    "galore, randomized and staggered": Case(
        [("galore", {**GALORE[1], "refresh": "randomized", "stagger": True, "moments": "rotate"})]
    ),
    "galore, both sides, 16 bits": Case([("galore", {**GALORE[1], "projection": "full"})], SIXTEEN_BITS),
    "galore, 8 bits per layer": Case([GALORE], EIGHT_BITS),
    "adarankgrad": Case([ADARANKGRAD]),
    "adarankgrad, 8 bits per layer": Case([ADARANKGRAD], EIGHT_BITS),
    "apollo": Case([APOLLO]),
    "apollo, mini, 16 bits": Case(
        [("apollo", {"rank": 1, "period": 2, "scaling": "tensor", "scale": 128})], SIXTEEN_BITS
    ),
    "apollo, by SVD": Case([("apollo", {**APOLLO[1], "projector": "svd", "arithmetic": "official"})]),
    "apollo, 8 bits per layer": Case([APOLLO], EIGHT_BITS),
    "welore + apollo": Case([COMPRESSED, APOLLO]),
    "fira": Case([FIRA]),
    "fira, as in its code": Case(
        [("fira", {**FIRA[1], "residual_alpha": 0.25, "arithmetic": "official", "signs": "free"})]
    ),
    "fira, 8 bits per layer": Case([FIRA], EIGHT_BITS),
    "velora + fira": Case([VELORA, FIRA], PER_LAYER),
    "lisa": Case([LISA]),
    "lisa, states kept, 16 bits": Case([("lisa", {**LISA[1], "states": "keep"})], SIXTEEN_BITS),
    "lisa, 8 bits per layer": Case([("lisa", {**LISA[1], "states": "reset"})], EIGHT_BITS),
    "welore + lisa": Case([COMPRESSED, LISA]),
    "velora + lisa": Case([VELORA, LISA], PER_LAYER),
    "owlore": Case([OWLORE]),
    "owlore, states kept, 16 bits": Case(
        [("owlore", {**OWLORE[1], "states": "keep", "returning": "refresh"})], SIXTEEN_BITS
    ),
    "owlore, 8 bits per layer": Case(
        [("owlore", {**OWLORE[1], "sampling": "outliers", "threshold": 2})], EIGHT_BITS
    ),
    "int8 + full": Case([INT8, ("full", {})]),
    "int8 + apollo, 8 bits per layer": Case([INT8, APOLLO], EIGHT_BITS),
    "int8 + lora": Case([INT8, LORA]),
    "int8 + lisa": Case([INT8, LISA]),
    "int8 + owlore": Case([INT8, OWLORE]),
    "int8 + fira": Case([INT8, FIRA]),
    "int8 + velora + galore": Case([INT8, VELORA, GALORE]),
    "qgalore": Case([QGALORE]),
    "qgalore, as in its code": Case(
        [("qgalore", {**QGALORE[1], "arithmetic": "official", "write_back": "official", "signs": "free"})]
    ),
    "qgalore, 8 bits per layer": Case([QGALORE], EIGHT_BITS),
    "velora + full": Case([VELORA, ("full", {})]),
    "velora by groups + full": Case([("velora", {**VELORA[1], "state": "groups"}), ("full", {})]),
    "lora + velora": Case([LORA, VELORA]),
    "velora + galore": Case([VELORA, GALORE], PER_LAYER),
    "velora + adarankgrad": Case([VELORA, ADARANKGRAD]),
    "lowrank": Case([("lowrank", {"rank": 8})]),
    "lowrank, balanced and reset, 16 bits": Case(
        [("lowrank", {"rank": 8, "refactor_period": 2, "reset_period": 2})], SIXTEEN_BITS
    ),
    "optim, matrices apart": Case([("optim", {"type": "Muon"})]),
    "optim, per layer": Case([("optim", {"type": "Adafactor"})], PER_LAYER),
    "lora + optim": Case([LORA, ("optim", {"type": "SGD", "momentum": 0.9})]),
    "sltrain": Case([SLTRAIN]),
    "sltrain, 8 bits per layer": Case([SLTRAIN], EIGHT_BITS),
    "sltrain, balanced and reset, 8 bits per layer": Case(
        [("sltrain", {**SLTRAIN[1], "refactor_period": 2, "reset_period": 3, "reset_moments": "first"})],
        EIGHT_BITS,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def scaffold(case: Case, **shape: Any) -> nn.Module:
    """A tiny model as the stack prepares it."""
    model: nn.Module = tiny_llama(**shape)
    for method in case.methods():
        model = method.prepare(model, Context(seed=1, updates=UPDATES, calibration=TinyText()))
    return model


def stepper_for(case: Case, model: nn.Module) -> Stepper:
    """The stepper of the last method that brings one."""
    found = [method.stepper(model, case.optim) for method in case.methods()]
    return next(stepper for stepper in reversed(found) if stepper is not None)


def prepared(case: Case, **shape: Any) -> tuple[nn.Module, Stepper]:
    model = scaffold(case, **shape)
    stepper = stepper_for(case, model)
    model.train()
    torch.manual_seed(5)  # dropout
    return model, stepper


def test_every_registered_method_takes_part() -> None:
    assert {name for case in CASES.values() for name, _ in case.stack} == set(REGISTRY)


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_for_strangers_passes(case: Case, check: str) -> None:
    try:
        CHECKS[check](Subject(tuple(case.stack), case.optim))
    except NotTried as reason:
        if check not in ("accumulation", "clipping", "per layer", "state bits", "period"):
            raise
        pytest.skip(str(reason))


def test_accumulation_is_refused_where_updates_are_per_layer(case: Case) -> None:
    choices = [{"name": name, "options": options} for name, options in case.stack]
    stage = sorted(stack_caps(case.methods()).stages - {"compress"})[0]
    run = Run(train=TrainConfig(grad_accum=4, stage=stage, **case.optim.model_dump()), method=choices)
    if case.optim.per_layer:
        with pytest.raises(UnsupportedError, match="grad_accum 4 would update once per micro-batch"):
            checks.supported(run, case.methods())
    else:
        checks.supported(run, case.methods())


def test_exactly_the_trainable_parameters_get_optimizer_state(case: Case) -> None:
    """Or those of all parameters from the start, where a method keeps states of what rests."""
    model, stepper = prepared(case)
    trainable: set[str] = set()
    for step in range(STEPS):
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        train(model, stepper, step, step + 1)
    states = [name for name, _ in stepper.state_tensors()]
    kept = any(options.get("states") == "keep" for _, options in case.stack)
    wanted = {name for name, _ in model.named_parameters()} if kept else trainable
    assert {name.rpartition(".")[0] for name in states} == wanted
    assert len(states) == len(set(states))


def test_training_on_one_batch_lowers_its_loss(case: Case) -> None:
    model, stepper = prepared(case)
    losses = [train(model, stepper, 0, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("shape", [{}, {"tie": True, "kv_heads": 2}], ids=["plain", "tied, grouped queries"])
def test_the_exported_model_is_plain_and_says_what_the_trained_one_said(
    case: Case, shape: dict[str, Any], tmp_path: Path
) -> None:
    model, stepper = prepared(case, **shape)
    train(model, stepper, 0, STEPS)
    wanted = logits(model)
    for method in reversed(case.methods()):
        model = method.export(model)
    exported = factored.merge(model)
    assert isinstance(exported, LlamaForCausalLM)
    assert {type(module).__module__.split(".")[0] for module in exported.modules()} <= {
        "torch",
        "transformers",
    }
    assert set(exported.state_dict()) == set(LlamaForCausalLM(exported.config).state_dict())
    torch.testing.assert_close(logits(exported), wanted, atol=1e-4, rtol=1e-4)

    exported.save_pretrained(tmp_path)
    loaded, notes = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert logits(loaded).equal(logits(exported))


class WatchedText(TinyText):
    """Calibration text that remembers whether anybody looked at it."""

    seen = False

    def _from(self, step: int, left: int) -> Any:
        self.seen = True
        return super()._from(step, left)


def test_a_method_that_looks_at_text_says_so(case: Case) -> None:
    text, model = WatchedText(), cast(nn.Module, tiny_llama())
    for method in case.methods():
        model = method.prepare(model, Context(seed=1, updates=UPDATES, calibration=text))
    assert text.seen == stack_caps(case.methods()).reads_text


def test_a_bfloat16_model_trains_in_bfloat16(case: Case) -> None:
    model: nn.Module = tiny_llama().to(torch.bfloat16)
    for method in case.methods():
        model = method.prepare(model, Context(seed=1, updates=UPDATES, calibration=TinyText()))
    stepper = stepper_for(case, model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    losses = [train(model, stepper, 0, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        ([GALORE, ("full", {})], "full trains this stack, so galore would not"),
        ([LISA, LORA], "lora trains this stack, so lisa would not"),
        ([("compress", {"train": "lrc"}), LORA], "lora trains this stack, so compress would not"),
        ([("welore", {}), LORA], "lora trains this stack, so welore would not"),
        ([("optim", {"type": "SGD"}), VELORA, QGALORE], "qgalore trains this stack, so optim would"),
        ([FIRA, OWLORE, ("full", {})], "so fira and owlore would not"),
    ],
    ids=lambda value: None if isinstance(value, str) else "+".join(name for name, _ in value),
)
def test_an_optimizer_that_another_one_replaces_is_refused(stack: Any, said: str) -> None:
    run = Run(train=TrainConfig(stage="finetune"), method=[{name: options} for name, options in stack])
    with pytest.raises(UnsupportedError, match=said):
        find_stepper(run, Case(stack).methods(), tiny_llama())


@pytest.mark.parametrize("stack", [[GALORE, VELORA], [COMPRESSED, LISA], [LORA, LISA], [INT8, APOLLO]])
def test_an_optimizer_that_trains_the_stack_is_not_refused(stack: Any) -> None:
    run = Run(train=TrainConfig(stage="finetune"), method=[{name: options} for name, options in stack])
    methods, model = Case(stack).methods(), scaffold(Case(stack))
    assert find_stepper(run, methods, model) is not None


@pytest.mark.parametrize(
    "stack",
    [
        *([LORA, GALORE], [LORA, APOLLO], [QLORA, APOLLO], [QLORA, LQLORA], [LORA, INT8], [RELORA, FIRA]),
        *([LORA, OWLORE], [("peft", {}), QGALORE], [("lotr", {}), INT8], [("lotr", {}), LORA]),
    ],
    ids=lambda stack: "+".join(name for name, _ in stack),
)
def test_what_cannot_follow_adapters_says_so(stack: Any) -> None:
    with pytest.raises(UserError, match=r"^targets: the model has adapters already, around 'q_proj'; use"):
        scaffold(Case(stack))


def test_what_cannot_follow_another_layer_names_it() -> None:
    with pytest.raises(UserError, match=r"^targets: 'q_proj' is a \w+Linear already, not a linear layer"):
        scaffold(Case([SLTRAIN, GALORE]))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_method_names_its_source_and_documents_its_options(name: str) -> None:
    method = build(name, {})
    assert "20" in method.source
    assert method.Config.__doc__
    method.Config()  # every option has a default
