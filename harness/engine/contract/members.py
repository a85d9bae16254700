"""Call the members of a method and its stepper, and check what they return where it is used.

A wrong value would surface later and elsewhere; here it is a MethodError with the author's file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from harness.config import OptimConfig
from harness.errors import MethodError
from harness.method import Context, Method, StepInfo, Stepper
from harness.plugins import check_call, place, shown

#: What the harness calls a stepper with, by member.
CALLED = {
    "set_lr": ("lr",),
    "step": (),
    "zero_grad": (),
    "state_tensors": (),
    "state_dict": (),
    "load_state_dict": ("state",),
}
COUNTS = ("refreshes", "skipped")


def prepare(name: str, method: Method, model: nn.Module, context: Context) -> Any:
    """Return the model that a method prepared; MethodError for anything else."""
    return _model(name, method.prepare, method.prepare(model, context))


def export(name: str, method: Method, model: nn.Module) -> Any:
    """Return the model that a method exported; MethodError for anything else."""
    return _model(name, method.export, method.export(model))


def _model(name: str, member: Any, returned: object) -> nn.Module:
    if isinstance(returned, nn.Module):
        return returned
    said = f"method {name}: {member.__name__} returned {shown(returned)}"
    raise MethodError(f"{said}; return the model{place(member)}")


def stepper(name: str, method: Method, model: nn.Module, config: OptimConfig) -> Stepper | None:
    """Return the stepper of a method, None without one; MethodError where a member is missing."""
    made = method.stepper(model, config)
    if made is None:
        return None
    if isinstance(made, optim.Optimizer):
        said = f"method {name}: stepper returned {shown(made)}, an optimizer of torch"
        raise MethodError(f"{said}; wrap it in a class with the members of Stepper{place(method.stepper)}")
    for member, arguments in CALLED.items():
        function = getattr(made, member, None)
        check_call(f"method {name}", member, function, arguments, type(made), MethodError)
    return made


def trainable(name: str, method: Method, model: nn.Module) -> None:
    """Raise MethodError for a prepared model in which nothing would train."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        said = f"method {name}: all parameters are frozen, so its stepper has nothing to train"
        raise MethodError(f"{said}; leave requires_grad to some in prepare{place(method.prepare)}")


def step(made: Stepper) -> StepInfo:
    """Update, and return what the stepper said about it."""
    info = made.step()
    if not isinstance(info, StepInfo):
        said = f"{type(made).__name__}.step returned {shown(info)}"
        raise MethodError(f"{said}; return a StepInfo, at least StepInfo(){place(made.step)}")
    for field, right, wanted in (
        ("grad_norm", info.grad_norm is None or _is_number(info.grad_norm), "None or a tensor of one number"),
        (
            "ranks",
            info.ranks is None or isinstance(info.ranks, Mapping),
            "None or a mapping of layers to ranks",
        ),
        *((name, _is_count(getattr(info, name)), "None or a whole number") for name in COUNTS),
    ):
        if not right:
            said = f"{type(made).__name__}.step returned {field}={shown(getattr(info, field))}"
            raise MethodError(f"{said}, not {wanted}{place(made.step)}")
    return info


def state_tensors(made: Stepper) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a stepper's state; MethodError for anything else."""
    found = made.state_tensors()
    said = f"{type(made).__name__}.state_tensors"
    try:
        items = iter(found)
    except TypeError:
        raise MethodError(
            f"{said} returned {shown(found)}; yield pairs of a name and a tensor{place(made.state_tensors)}"
        ) from None
    for item in items:
        pair: Sequence[Any] = item if isinstance(item, (tuple, list)) and len(item) == 2 else (None, item)
        if not (isinstance(pair[0], str) and isinstance(pair[1], Tensor)):
            what = (
                f"{shown(pair[0])} with {shown(pair[1])}"
                if len(pair) == 2 and pair[0] is not None
                else shown(item)
            )
            raise MethodError(
                f"{said} yielded {what}; yield pairs of a name and a tensor{place(made.state_tensors)}"
            )
        yield pair[0], pair[1]


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))
