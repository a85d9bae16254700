"""The options of an optimizer: the arguments of its constructor, tried before anything trains."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from harness.errors import UserError
from harness.method import MethodConfig
from harness.strict_yaml import in_line
from methods.parts.library_options import unusable
from methods.parts.targets import LINEAR_KINDS
from methods.parts.torch_optimizers.catalogue import (
    MODULES,
    UNUSABLE,
    Choice,
    classes_of,
    find_optimizer,
    package_and_version,
)
from methods.parts.torch_optimizers.signature import fields_of
from methods.parts.torch_optimizers.trial import Trial, tried

#: Arguments of constructors that are settings of a run.
ELSEWHERE = {"lr": "is train.lr, on the schedule of train", "weight_decay": "is train.weight_decay"}
#: A class by its full name, whatever is written.
TypeName = Annotated[
    str, BeforeValidator(lambda name: find_optimizer(name)[0] if isinstance(name, str) else name)
]


class OptimizerOptions(MethodConfig):
    """Options of optim: the class of the optimizer, its groups, and the arguments of its constructor."""

    type: TypeName = "torch.optim:AdamW"
    """Optimizer: a class of torch.optim or of an installed package (`lorebench methods optim` lists them),
    `package.module:Class`, or `file.py:Class` in the folder of plug-ins. All other options are the arguments
    of its constructor, with its defaults, but `foreach`, which is off."""

    rest: Literal["same", "adamw"] | None = None
    """What trains all but the target matrices: the `same` optimizer, or AdamW with `betas` and `eps` of
    train. By default the same, and AdamW where the optimizer takes matrices alone, as Muon does."""

    rest_rate: Annotated[float, Field(gt=0)] = 1.0
    """Rate of AdamW for the rest, as a multiple of `train.lr`."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers whose weights are the target matrices; of a factored layer both factors are."""

    group: dict[str, Any] = Field(default_factory=dict)
    """Keys that the optimizer reads from the group of the target matrices, such as `rank` for galore_torch
    and apollo_torch; a key that it does not read is refused."""

    @property
    def choice(self) -> Choice:
        """The optimizer's class with its options."""
        own = {*OptimizerOptions.model_fields, *ELSEWHERE}
        return Choice(self.type, {name: value for name, value in self if name not in own}, self.group)

    @property
    def trial(self) -> Trial:
        """What the optimizer did with small parameters; UserError where it cannot be used."""
        return tried(self.choice, matrices_alone=self.rest == "adamw")

    @model_validator(mode="after")
    def _accepted(self) -> OptimizerOptions:
        """Let the optimizer try its options, and choose what trains the rest."""
        if type(self) is OptimizerOptions:
            return self
        vectors = self.trial.vectors
        if self.rest == "same" and not vectors:
            raise UserError(f"{self.type} takes matrices alone; set rest: adamw, or leave rest out")
        rest = self.rest or ("same" if vectors else "adamw")
        if rest == "same" and self.rest_rate != 1:
            raise UserError("rest_rate is that of AdamW for the rest; set rest: adamw, or leave it out")
        if rest == "same" and not self.group and self.targets != LINEAR_KINDS:
            raise UserError("targets has no effect without `group` or rest: adamw; leave it out")
        object.__setattr__(self, "rest", rest)  # so that a run's identity holds what was chosen
        return self


@functools.cache
def options_class(name: str) -> type[OptimizerOptions]:
    """Return the options of the optimizer of a name; UserError for one that is unknown or cannot be used."""
    full, cls = find_optimizer(name)
    try:
        own = fields_of(cls, OptimizerOptions.model_fields)
    except UserError as error:
        raise UserError(f"method optim: type {full} cannot be used: {error}", ("type",)) from error
    fields = {"type": (TypeName, full), **own, **{name: unusable(why) for name, why in ELSEWHERE.items()}}
    made = create_model(f"{cls.__name__}Options", __base__=OptimizerOptions, __module__=__name__, **fields)
    made.__doc__ = f"Options of {full}."
    return made


def choices() -> dict[str, str]:
    """Return packages and what of them is installed, and their optimizers with options or why not."""
    found = {}
    for module in MODULES:
        found[module] = package_and_version(module) or "not installed"
        for name, cls in sorted(classes_of(module).items()):
            key = name if module == MODULES[0] else f"{module}:{name}"
            if key in UNUSABLE:
                found[key] = f"refused: {UNUSABLE[key]}"
                continue
            try:
                fields = fields_of(cls, ELSEWHERE)
            except UserError as error:
                found[key] = f"refused: {error}"
                continue
            shown = (
                f"{key} {'required' if f.is_required() else in_line(f.default)}"
                for key, (_, f) in fields.items()
            )
            found[key] = ", ".join(shown) or "no options"
    return found
