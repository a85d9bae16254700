"""Any optimizer by its name: equal to a bare loop, held to its signature, refused where it cannot serve."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bitsandbytes
import galore_torch
import pytest
import torch
from torch import nn

from harness.config import OptimConfig, Run
from harness.engine.contract.checks import CHECKS
from harness.engine.contract.subject import Subject
from harness.engine.forecast.count import count
from harness.engine.forecast.dry_run import simulate
from harness.engine.run import checks
from harness.errors import MethodError, UnsupportedError, UserError
from harness.method import Context, Stepper
from harness.plugins import build, complete_options, find
from methods.parts.targets import LINEAR_KINDS
from methods.parts.torch_optimizers import catalogue
from methods.parts.torch_optimizers.options import options_class
from methods.parts.torch_optimizers.stepper import OptimizerStepper
from tests.support.tiny import logits, tiny_batch, tiny_llama

DECAY, CLIP = 0.1, 0.5
RATES = (3e-3, 1e-2, 5e-3, 0.0, 2e-3)
GALORE = {"rank": 4, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
#: What strangers write: a class that is fine but for one thing each.
STRANGERS = '''
from fractions import Fraction

import numpy as np
import torch
from torch.optim import Optimizer


class Plain(Optimizer):
    """Sign descent with momentum that it keeps outside of `state`, with a count of its own."""

    def __init__(self, params, lr=1e-3, beta=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})
        self.count, self.momenta = 0, [[None for _ in g["params"]] for g in self.param_groups]

    def rate(self, group):
        return group["lr"]

    def look(self, gradient):
        return gradient

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for group, momenta in zip(self.param_groups, self.momenta):
            for i, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if momenta[i] is None:
                    momenta[i] = torch.zeros_like(p)
                momenta[i].mul_(group["beta"]).add_(self.look(p.grad))
                rate = self.rate(group) * (1 + 1 / self.count)
                p.mul_(1 - rate * group["weight_decay"]).add_(momenta[i].sign(), alpha=-rate)


class CopiesTheRate(Plain):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        self.fixed = torch.tensor(lr)

    def rate(self, group):
        return float(self.fixed)


class RateInATensor(Plain):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, torch.tensor(lr))


class StandsStill(Plain):
    """Begins only when its estimates are good, as rectified Adam without a schedule does."""

    def rate(self, group):
        return group["lr"] if self.count > 5 else 0.0


class MovesAnyway(Plain):
    def rate(self, group):
        return group["lr"] + 1e-3


class OneNorm(Plain):
    """Moves by the norm of all gradients together."""

    def look(self, gradient):
        grads = [p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]
        return gradient + 0.01 * torch.stack(grads).norm()


class Draws(Plain):
    def look(self, gradient):
        noise = torch.rand_like(gradient)
        self.drawn = [*getattr(self, "drawn", []), float(noise.flatten()[0])]
        return gradient * noise


class IsAnnotatedWrongly(Plain):
    def __init__(self, params, lr=1e-3, beta: str = 0.9):
        super().__init__(params, lr, beta)


class ReadsValues(Plain):
    def look(self, gradient):
        return torch.from_numpy(np.array(gradient))


class Compiles(Plain):
    def look(self, gradient):
        return torch.compile(lambda given: given * 2, fullgraph=True)(gradient)


class Packed(torch.Tensor):
    """As states of few bits, which implement a part of what tensors can do."""

    def clone(self):
        raise NotImplementedError


torch.serialization.add_safe_globals([Packed])


class KeepsPacked(Plain):
    def look(self, gradient):
        p = self.param_groups[0]["params"][0]
        self.state[p].setdefault("packed", torch.zeros(3).as_subclass(Packed)).add_(1)
        return gradient * float(self.state[p]["packed"][0])


class KeepsMuch(Plain):
    def look(self, gradient):
        p, group = self.param_groups[0]["params"][0], self.param_groups[0]
        for kept in (self.state["shared"], group):
            kept["times"] = kept.get("times", 0) + 1
        self.state[p]["dtype"] = p.dtype
        return gradient

    def rate(self, group):
        return group["lr"] / group["times"] / self.state["shared"]["times"]


class KeepsAThing(Plain):
    def look(self, gradient):
        self.state[self.param_groups[0]["params"][0]]["thing"] = Fraction(1)
        return gradient


class KeysOfItsOwn(Plain):
    def look(self, gradient):
        self.state[7]["last"] = 1
        return gradient


class TakesDefaults(torch.optim.AdamW):
    def __init__(self, params, defaults, betas=(0.9, 0.999), amsgrad=False, **keywords):
        super().__init__(params, betas=betas, amsgrad=amsgrad, **keywords, **defaults)


class HandsOn(TakesDefaults):
    """Gives its base some arguments itself, and hands others on."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0, **keywords):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, amsgrad=True, **keywords)


class NeedsAClosure(Plain):
    def step(self, closure):
        super().step()


class NoRate(Optimizer):
    def __init__(self, params, speed=1.0):
        super().__init__(params, {"speed": speed})


class OfAClass(Plain):
    def __init__(self, params, base_optimizer: type, lr=1e-3):
        super().__init__(params, lr)


class Forgets(Plain):
    """Keeps what a resume needs where nobody can save it."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        self.momenta = tuple(map(iter, ()))
        self.hidden = type("Hidden", (), {"scale": 1.0})()

    @torch.no_grad()
    def step(self, closure=None):
        self.hidden.scale *= 0.5
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"] * self.hidden.scale)


class Averages(Optimizer):
    """Trains one set of weights and evaluates their mean."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})
        self.training = False

    @torch.no_grad()
    def swap(self, training):
        if training != self.training:
            self.training = training
            for p, state in self.state.items():
                other = state["mean"].clone()
                state["mean"].copy_(p)
                p.copy_(other)

    def train(self):
        self.swap(True)

    def eval(self):
        self.swap(False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self.training
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"])
                    state = self.state[p]
                    state["n"] = state.get("n", 0) + 1
                    state.setdefault("mean", torch.zeros_like(p)).lerp_(p, 1 / state["n"])


class Rounds(Optimizer):
    """Evaluates a third of the weights, and does not find back to the bit."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})
        self.training = True

    @torch.no_grad()
    def scale(self, training):
        if training != self.training:
            self.training = training
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(3.0 if training else 1 / 3.0)

    def train(self):
        self.scale(True)

    def eval(self):
        self.scale(False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self.training
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"])
'''


@pytest.fixture(scope="module", autouse=True)
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of plug-ins with a file of optimizers."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "strange_optim.py").write_text(STRANGERS)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


def configured(optim: OptimConfig | None = None, **options: Any) -> tuple[nn.Module, Any]:
    """A tiny model with the stepper of the adapter."""
    model: nn.Module = tiny_llama()
    method = build("optim", options)
    model = method.prepare(model, Context(seed=3))
    stepper = method.stepper(model, optim or OptimConfig(weight_decay=DECAY, clip=CLIP))
    return model, stepper


def trained(model: nn.Module, stepper: Stepper, rates: tuple[float, ...] = RATES) -> list[float]:
    losses = []
    for step, rate in enumerate(rates):
        stepper.set_lr(rate)
        ids = tiny_batch(step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())
    return losses


def bare(make: Callable[[nn.Module], list[torch.optim.Optimizer]]) -> tuple[nn.Module, list[float]]:
    """The same training as a user of torch writes it, without this project."""
    model, losses = tiny_llama(), []
    optimizers = make(model)
    for step, rate in enumerate(RATES):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
        ids = tiny_batch(step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return model, losses


def same(mine: nn.Module, theirs: nn.Module) -> bool:
    return all(p.equal(q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))


# ------------------------------------------------------------------------------- equal to a bare loop
@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("AdamW", torch.optim.AdamW, {"betas": [0.8, 0.9]}),
        ("SGD", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("Adafactor", torch.optim.Adafactor, {}),
        ("RMSprop", torch.optim.RMSprop, {"alpha": 0.9}),
        ("Lion", bitsandbytes.optim.Lion, {}),
        ("bitsandbytes.optim:AdamW8bit", bitsandbytes.optim.AdamW8bit, {"min_8bit_size": 256}),
    ],
)
def test_training_is_that_of_a_bare_loop_to_the_bit(name: str, cls: Any, options: dict[str, Any]) -> None:
    mine, stepper = configured(type=name, **options)
    theirs, losses = bare(lambda model: [cls(model.parameters(), weight_decay=DECAY, lr=1, **options)])
    assert trained(mine, stepper) == losses
    assert same(mine, theirs)


def test_arguments_of_a_base_are_options_where_they_are_handed_on() -> None:
    mine, stepper = configured(type="strange_optim:HandsOn", betas=[0.8, 0.9])
    theirs, losses = bare(
        lambda model: [
            torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9), amsgrad=True, weight_decay=DECAY)
        ]
    )
    assert trained(mine, stepper) == losses
    assert same(mine, theirs)


def of_blocks(model: nn.Module, inside: bool) -> list[nn.Parameter]:
    """The weights of attention and feed-forward layers, or all others."""
    return [p for name, p in model.named_parameters() if ("_proj" in name) == inside]


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    mine, stepper = configured(type="Muon", rest_rate=0.5)

    def make(model: nn.Module) -> list[torch.optim.Optimizer]:
        matrices, rest = of_blocks(model, True), [{"params": of_blocks(model, False), "share": 0.5}]
        return [
            torch.optim.Muon(matrices, weight_decay=DECAY),
            torch.optim.AdamW(rest, weight_decay=DECAY, fused=True),
        ]

    theirs, losses = bare(make)
    assert trained(mine, stepper) == losses
    assert same(mine, theirs)
    assert len(stepper.own) == 2 * len(LINEAR_KINDS)


def test_muon_trains_adapters_too() -> None:
    model: nn.Module = tiny_llama()
    for name, options in (("lora", {"rank": 4}), ("optim", {"type": "Muon"})):
        method = build(name, options)
        model = method.prepare(model, Context())
    stepper: Any = method.stepper(model, OptimConfig())
    assert len(stepper.own) == 4 * len(LINEAR_KINDS)
    assert set(stepper.own) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_targets_of_which_none_trains_are_refused() -> None:
    model: nn.Module = build("lora", {"rank": 4, "targets": ["v_proj"]}).prepare(tiny_llama(), Context())
    method = build("optim", {"type": "Muon", "targets": ["q_proj"]})
    with pytest.raises(UserError, match="targets: no matrix of q_proj trains; choose layers that do"):
        method.stepper(model, OptimConfig())


def test_keys_of_the_group_of_matrices_reach_the_optimizer() -> None:
    mine, stepper = configured(type="galore_torch:GaLoreAdamW", group=GALORE)

    def make(model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = [{"params": of_blocks(model, True), **GALORE}, {"params": of_blocks(model, False)}]
        return [galore_torch.GaLoreAdamW(groups, weight_decay=DECAY)]

    theirs, losses = bare(make)
    assert trained(mine, stepper) == losses
    assert same(mine, theirs)


def test_states_inside_objects_are_counted_and_resumed() -> None:
    options = {"type": "galore_torch:GaLoreAdamW", "group": GALORE}
    _, stepper = configured(**options)
    trained(_, stepper)
    named = dict(stepper.state_tensors())
    bases = [tensor for name, tensor in named.items() if name.endswith(".projector.ortho_matrix")]
    assert len(bases) == 2 * len(LINEAR_KINDS)
    assert {min(basis.shape) for basis in bases} == {4}
    for check in ("states", "resume", "copy"):
        CHECKS[check](Subject((("optim", options),)))


# ----------------------------------------------------------------------------------------- options
def test_options_are_complete_and_name_the_class_in_full() -> None:
    options = complete_options("optim", build("optim", {"type": "Muon", "momentum": 0.8}))
    assert options["type"] == "torch.optim:Muon"
    assert options["momentum"] == 0.8
    assert options["rest"] == "adamw"
    assert options["ns_coefficients"] == [3.4445, -4.775, 2.0315]
    assert options["nesterov"] is True
    assert "adjust_lr_fn" not in options  # off, so that earlier records stay valid when torch adds such
    assert complete_options("optim", build("optim", options)) == options
    assert not {"lr", "params", "weight_decay"} & options.keys()


def test_all_tensors_at_once_only_where_asked_for() -> None:
    """torch does it by default on a GPU alone, where it takes a copy of all tensors."""
    for given, used in (({}, False), ({"foreach": True}, True)):
        config: Any = build("optim", {"type": "SGD", **given}).config
        assert config.choice.options["foreach"] is used


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "Muno"}, "did you mean 'Muon'?"),
        ({"type": "torch.optim:Adm"}, "module 'torch.optim' has no class 'Adm'; did you mean 'Adam'"),
        ({"type": "SGD", "momentun": 0.9}, "unknown key 'momentun'; did you mean 'momentum'?"),
        ({"type": "SGD", "momentum": "0.9"}, "momentum: give a number, not the text '0.9'"),
        ({"type": "SGD", "nesterov": 1}, "nesterov: give true or false, not 1"),
        ({"type": "AdamW", "betas": 0.9}, "betas: give a list"),
        ({"type": "AdamW", "betas": [0.9, 2.0]}, "Invalid beta parameter at index 1: 2.0"),
        ({"type": "AdamW", "lr": 0.1}, "lr: it is train.lr, on the schedule of train"),
        ({"type": "AdamW", "weight_decay": 0.1}, "weight_decay: it is train.weight_decay"),
        ({"type": "LBFGS"}, "its step needs `closure`: it computes the loss several times per update"),
        ({"type": "SparseAdam"}, "SparseAdam does not support dense gradients"),
        ({"type": "Rprop"}, "an update does not use the rate that was set before it"),
        ({"type": "Muon", "rest": "same"}, "takes matrices alone; set rest: adamw"),
        ({"type": "AdamW", "rest_rate": 0.1}, "rest_rate is that of AdamW for the rest"),
        ({"type": "AdamW", "targets": ["q_proj"]}, "targets has no effect"),
        ({"type": "AdamW", "group": {"rank": 4}}, "it reads no key 'rank' of its groups"),
        (
            {"type": "galore_torch:GaLoreAdamW", "group": {"rank": 4}},
            "no key 'update_proj_gap' in its groups",
        ),
        ({"type": "strange_optim:CopiesTheRate"}, "an update does not use the rate"),
        ({"type": "strange_optim:MovesAnyway"}, "it moves weights at the rate 0"),
        ({"type": "strange_optim:NeedsAClosure"}, "its step needs `closure`"),
        ({"type": "strange_optim:NoRate"}, "its constructor takes no `lr`"),
        ({"type": "strange_optim:OfAClass"}, "it needs `base_optimizer`, which no option can give"),
        ({"type": "strange_optim:np"}, "is not a subclass of torch.optim.optimizer.Optimizer"),
        ({"type": "no_such_file.py:Mine"}, "cannot import module 'no_such_file'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        build("optim", options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_two_packages_have_is_asked_for_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = importlib.import_module("strange_optim")
    monkeypatch.setattr(catalogue, "MODULES", (*catalogue.MODULES, "strange_optim"))
    monkeypatch.setattr(strange, "Lion", bitsandbytes.optim.Lion, raising=False)
    for cached in (catalogue.classes_of, options_class):
        cached.cache_clear()
    try:
        with pytest.raises(UserError, match=r"write bitsandbytes\.optim:Lion or strange_optim:Lion"):
            build("optim", {"type": "Lion"})
    finally:
        catalogue.classes_of.cache_clear()


@pytest.mark.parametrize(
    ("options", "optim", "said"),
    [
        ({"type": "strange_optim:Averages"}, {"weight_decay": 0.1}, "takes no weight decay"),
        ({"type": "SGD"}, {"betas": (0.9, 0.95)}, "train.betas is AdamW's"),
        ({"type": "SGD"}, {"eps": 1e-6}, "train.eps is AdamW's"),
    ],
)
def test_a_setting_of_train_that_would_be_ignored_is_refused(
    options: dict[str, Any], optim: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        configured(OptimConfig(**optim), **options)


def test_betas_of_train_are_those_of_adamw_for_the_rest() -> None:
    _, stepper = configured(OptimConfig(betas=(0.5, 0.6)), type="Muon")
    assert stepper.adam.optim.betas == (0.5, 0.6)


# ---------------------------------------------------------------------------------- a stranger's class
def run_of(**options: Any) -> Run:
    return Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": 24},
            "method": [{"optim": options}],
            "train": {"batch": 3, "weight_decay": DECAY},
        }
    )


def test_a_class_of_a_file_keeps_the_contract() -> None:
    options = {"type": "strange_optim.py:Plain", "beta": 0.8}
    subject = Subject((("optim", options),))
    for name in ("updates", "states", "resume", "copy", "rate", "randomness", "accumulation", "per layer"):
        CHECKS[name](subject)
    assert complete_options("optim", build("optim", options))["type"] == "strange_optim:Plain"


def test_states_outside_of_state_are_counted_live_and_in_a_forecast() -> None:
    run = run_of(type="strange_optim:Plain")
    predicted, counted = (found.train for found in (simulate(run, granularity=1), count(run)))
    assert predicted is not None
    assert counted is not None
    assert predicted.optimizer_bytes == counted.optimizer_bytes == counted.weights_trainable_bytes
    assert predicted.peak_allocated_bytes == counted.peak_allocated_bytes


def test_compiled_code_runs_as_it_is_written_where_memory_is_metered_by_operation() -> None:
    run = run_of(type="strange_optim:Compiles")
    predicted, counted = (found.train for found in (simulate(run, granularity=1), count(run)))
    assert predicted is not None
    assert counted is not None
    assert predicted.peak_allocated_bytes == counted.peak_allocated_bytes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("KeepsPacked", ""),
        ("KeepsMuch", ""),
        ("KeepsAThing", "its state cannot be saved and loaded safely: TypeError: its state holds a Fraction"),
        (
            "KeysOfItsOwn",
            "its state cannot be saved and loaded safely: TypeError: its state has keys that are neither "
            "parameters nor text",
        ),
    ],
)
def test_states_of_other_kinds_are_resumed_where_a_safe_loader_reads_them(name: str, reason: str) -> None:
    config: Any = build("optim", {"type": f"strange_optim:{name}"}).config
    assert config.trial.cannot_resume == reason


def test_what_reads_values_has_no_forecast_and_says_so() -> None:
    run = run_of(type="strange_optim:ReadsValues")
    assert count(run).train is not None
    with pytest.raises(MethodError, match="ReadsValues does not run on tensors without values, so it has no"):
        simulate(run)


def test_an_optimizer_that_stands_still_at_first_is_used() -> None:
    assert build("optim", {"type": "strange_optim:StandsStill"}).caps.per_layer


def test_a_rate_in_a_tensor_is_set_in_place() -> None:
    mine, stepper = configured(OptimConfig(), type="strange_optim:RateInATensor")
    plain, other = configured(OptimConfig(), type="strange_optim:Plain")
    assert trained(mine, stepper) == pytest.approx(trained(plain, other), rel=1e-5)


def test_one_optimizer_for_each_parameter_is_refused_where_it_does_something_else() -> None:
    methods = [build("optim", {"type": "strange_optim:OneNorm"})]
    run = run_of(type="strange_optim:OneNorm")
    run = run.model_copy(update={"train": run.train.model_copy(update={"per_layer": True})})
    said = "does something else with one optimizer for each parameter"
    with pytest.raises(UnsupportedError, match=said):
        checks.supported(run, methods)
    assert build("optim", {"type": "strange_optim:Plain"}).caps.per_layer


def test_updates_inside_backward_are_the_same_to_the_bit() -> None:
    whole = configured(OptimConfig(weight_decay=DECAY), type="Adafactor")
    apart = configured(OptimConfig(weight_decay=DECAY, per_layer=True), type="Adafactor")
    assert trained(*whole) == trained(*apart)
    assert same(whole[0], apart[0])


def test_each_update_of_each_seed_has_random_numbers_of_its_own_which_a_resume_goes_on_with() -> None:
    drawn: list[float] = []
    for seed in (1, 2):
        method = build("optim", {"type": "strange_optim:Draws"})
        model = method.prepare(tiny_llama(), Context(seed=seed))
        stepper: Any = method.stepper(model, OptimConfig())
        trained(model, stepper)
        drawn += stepper.optimizers[""].drawn
    assert len(drawn) == 2 * len(RATES) * len([*tiny_llama().parameters()])
    assert len(set(drawn)) == len(drawn)
    CHECKS["resume"](Subject((("optim", {"type": "strange_optim:Draws"}),)))


def test_a_state_of_other_optimizers_or_parameters_is_refused() -> None:
    model, stepper = configured(OptimConfig(), type="SGD", momentum=0.9)
    trained(model, stepper)
    _, apart = configured(OptimConfig(per_layer=True), type="SGD", momentum=0.9)
    with pytest.raises(ValueError, match=r"the state was saved with another train\.per_layer"):
        apart.load_state_dict(stepper.state_dict())
    model.get_parameter("model.norm.weight").requires_grad_(False)
    fewer: Any = build("optim", {"type": "SGD", "momentum": 0.9}).stepper(model, OptimConfig())
    with pytest.raises(ValueError, match=r"parameters that are not trained: model\.norm\.weight"):
        fewer.load_state_dict(stepper.state_dict())


@pytest.mark.parametrize("check", ["states", "resume"])
def test_adamw_for_the_rest_is_counted_and_resumed(check: str) -> None:
    CHECKS[check](Subject((("optim", {"type": "Muon"}),)))


def test_a_trial_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    drawing = build("optim", {"type": "strange_optim:Draws", "beta": 0.7})
    assert torch.get_rng_state().equal(before)
    assert not drawing.caps.per_layer  # where each update has random numbers of its own


def test_a_default_that_its_annotation_excludes_stays() -> None:
    options = complete_options("optim", build("optim", {"type": "strange_optim:IsAnnotatedWrongly"}))
    assert options["beta"] == 0.9


def test_random_numbers_follow_from_the_seed_and_leave_others_alone() -> None:
    found = []
    for outside in (1, 2):
        model, stepper = configured(OptimConfig(), type="strange_optim:Draws")
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        losses = trained(model, stepper)
        assert torch.get_rng_state().equal(before)
        found.append(losses)
    assert found[0] == found[1]


def test_what_cannot_resume_trains_and_says_so() -> None:
    method = build("optim", {"type": "strange_optim:Forgets"})
    context = Context()
    model = method.prepare(tiny_llama(), context)
    assert "restored, it goes on differently" in context.facts["cannot_resume"]
    stepper: Any = method.stepper(model, OptimConfig())
    trained(model, stepper)
    with pytest.raises(UnsupportedError, match="restored, it goes on differently"):
        stepper.state_dict()


# ------------------------------------------------------------------------- averages that are evaluated
def test_weights_to_evaluate_are_in_place_when_the_model_evaluates() -> None:
    method = build("optim", {"type": "strange_optim:Averages"})
    model = method.prepare(tiny_llama(), Context())
    stepper = method.stepper(model, OptimConfig())
    assert isinstance(stepper, OptimizerStepper)
    name, seen = "model.norm.weight", []
    for step in range(3):
        model.train()
        trained(model, stepper, (0.1 + step,))
        seen.append(model.get_parameter(name).detach().clone())
    torch.testing.assert_close(model.get_parameter(name), seen[-1])
    wanted = torch.stack(seen).mean(0)
    assert not wanted.allclose(seen[-1])
    held = []
    model.model.norm.register_forward_hook(lambda norm, *_: held.append(norm.weight.detach().clone()))
    logits(model)
    torch.testing.assert_close(held[-1], wanted)
    assert model.get_parameter(name).equal(seen[-1]), "the weights to train come back, to the bit"
    exported = method.export(model)
    torch.testing.assert_close(exported.get_parameter(name).detach(), wanted)
    assert not exported._forward_pre_hooks


@pytest.mark.parametrize("name", ["Averages", "Rounds"])
def test_a_score_in_the_middle_of_a_training_leaves_the_weights_to_train_as_they_were(name: str) -> None:
    CHECKS["scored"](Subject((("optim", {"type": f"strange_optim:{name}"}),), OptimConfig(lr=1e-2)))


def test_the_optimizer_is_freed_with_its_stepper_once_the_model_evaluates() -> None:
    model, stepper = configured(OptimConfig(), type="strange_optim:Averages")
    trained(model, stepper)
    optimizer = weakref.ref(stepper.optimizers[""])
    del stepper
    gc.collect()
    assert optimizer() is not None  # the weights to evaluate are its
    logits(model)
    gc.collect()
    assert optimizer() is None


def test_the_command_lists_what_is_installed() -> None:
    named = find("optim").choices()
    assert named["torch.optim"] == f"torch {version('torch')}"
    assert named["Muon"].startswith("momentum 0.95, nesterov true")
    assert named["LBFGS"].startswith("refused: its step needs")
    assert "optim_bits 32" in named["bitsandbytes.optim:Adam8bit"]


@pytest.mark.parametrize("name", sorted(catalogue.classes_of("torch.optim")))
def test_the_list_refuses_of_torch_what_the_trial_refuses(name: str) -> None:
    listed = find("optim").choices()[name]
    if not listed.startswith("refused: "):
        build("optim", {"type": name})
        return
    with pytest.raises(UserError) as refused:
        build("optim", {"type": name})
    assert listed.removeprefix("refused: ") in str(refused.value)
