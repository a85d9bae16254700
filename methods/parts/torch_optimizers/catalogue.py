"""Where an optimizer's class is found by its name, and how one is made of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from harness.errors import UserError, nearest
from harness.files import ABSENT, installed
from harness.plugins import find_class, import_library
from harness.registry import class_named
from methods.parts.torch_optimizers.signature import OptimizerClass, arguments

#: Modules whose classes need no module in their name, where the name is in one of them alone or in the first.
MODULES = (
    *("torch.optim", "bitsandbytes.optim", "torchao.optim", "galore_torch", "apollo_torch"),
    *("pytorch_optimizer", "schedulefree", "lion_pytorch"),
)
#: Optimizers of torch that no options make usable, and why: the list of them does not try each.
UNUSABLE = {
    "ASGD": "an update does not use the rate that was set before it",
    "Rprop": "an update does not use the rate that was set before it",
    "SparseAdam": "SparseAdam does not support dense gradients",
}
WRITTEN = "write an optimizer of your own as module:Class or file.py:Class"


def find_optimizer(name: str) -> tuple[str, OptimizerClass]:
    """Return the full name "module:Class" and the class of an optimizer; UserError where there is none.

    `name` may be the class alone, for `MODULES`, or begin with its module or its file in the folder of
    plug-ins.
    """
    what = f"method optim: type {name!r}"
    if ":" in name:
        full = class_named(name)
        return full, find_class(what, full, Optimizer, plug_in=full.partition(":")[0] not in MODULES)
    if name in classes_of(MODULES[0]):
        return f"{MODULES[0]}:{name}", classes_of(MODULES[0])[name]
    known = {module: classes_of(module) for module in MODULES}
    having = [module for module in MODULES if name in known[module]]
    if len(having) == 1:
        return f"{having[0]}:{name}", known[having[0]][name]
    if having:
        either = " or ".join(f"{module}:{name}" for module in having)
        raise UserError(f"{what}: several packages have it; write {either}", ("type",))
    hint = nearest(name, [each for found in known.values() for each in found])
    hint = hint if hint.endswith("?") else f"{hint}; {WRITTEN}"
    where = ", ".join(module for module in MODULES if known[module])
    raise UserError(f"{what}: no such optimizer in {where}; {hint}", ("type",))


@functools.cache
def classes_of(module: str) -> Mapping[str, OptimizerClass]:
    """Return the optimizers of a module by name, none where it cannot be imported."""
    with suppress(Exception):  # a package may be broken in its own way; named in full, it says how
        found = vars(import_library(module)).items()
        return {name: item for name, item in found if _is_optimizer(item) and not name.startswith("_")}
    return {}


def _is_optimizer(item: object) -> bool:
    return inspect.isclass(item) and issubclass(item, Optimizer) and item is not Optimizer


def package_and_version(module: str) -> str:
    """Return the package of one of `MODULES` with its version, "" where it is not installed."""
    package = module.partition(".")[0]
    found = installed(package)
    return "" if found == ABSENT else f"{package} {found}"


@dataclass(frozen=True)
class Choice:
    """An optimizer's class with its options and the extra keys of the group of the target matrices."""

    name: str
    options: Mapping[str, Any]
    group: Mapping[str, Any]

    @property
    def cls(self) -> OptimizerClass:
        """The class."""
        return find_optimizer(self.name)[1]

    @property
    def decays(self) -> bool:
        """Whether the constructor takes a weight decay."""
        return "weight_decay" in arguments(self.cls)

    def make(
        self,
        parameters: Mapping[str, nn.Parameter],
        targets: Collection[str],
        lr: float,
        weight_decay: float = 0.0,
        wrap: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Optimizer:
        """Return an optimizer of parameters by name, of which `targets` are the target matrices.

        `wrap` makes each group what the constructor is given.
        """
        apart = {name for name in targets if self.group}
        matrices = [parameter for name, parameter in parameters.items() if name in apart]
        others = [parameter for name, parameter in parameters.items() if name not in apart]
        groups = [{"params": matrices, **self.group}, {"params": others}]
        decay: dict[str, Any] = {"weight_decay": weight_decay} if self.decays else {}
        used: Any = [wrap(group) for group in groups if group["params"]]
        return self.cls(used, lr=lr, **decay, **self._given)

    @property
    def _given(self) -> dict[str, Any]:
        """The options without those of a base at their defaults, which the class may give itself."""
        known = arguments(self.cls)
        return {
            name: value
            for name, value in self.options.items()
            if not (known[name].inherited and value == known[name].default)
        }
