"""The options of a tuner: those of its configuration class in `peft`, typed and checked one by one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator

from harness.errors import UserError, nearest, one_line
from harness.method import MethodConfig
from methods.parts.library_options import left_out_when_off, said_in_one_line, unusable
from methods.parts.tuners.catalogue import ALIASES, installed, why_not

if TYPE_CHECKING:
    from peft import PeftConfig

#: Fields of every configuration of peft that are not for a suite.
HIDDEN = frozenset({"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"})
HIDDEN |= {"revision", "inference_mode", "progressbar"}
_DATA = "needs a pass over data before training"
_LOSS = "adds a term to the loss, which only a loop of its own would do"
#: Options that cannot be used, and why.
UNUSABLE = {
    "alora_invocation_tokens": "needs texts with these tokens in them",
    "arrow_config": "routes between adapters that were trained before",
    "corda_config": _DATA,
    "ensure_weight_tying": "is for adapters of tied embeddings, which no target here is",
    "eva_config": _DATA,
    "kasa_config": _LOSS,
    "layer_replication": "changes the depth of the model, so it could not be exported",
    "loftq_config": "replaces the weights by quantised ones, which no method here does on the side",
    "lora_ga_config": _DATA,
    "megatron_config": "is for Megatron's parallel layers",
    "megatron_core": "is for Megatron's parallel layers",
    "monteclora_config": _LOSS,
    "qalora_group_size": "is for layers quantised by GPTQ",
    "runtime_offload_base_weight": "moves tensors between devices, which no meter here follows",
    "runtime_config": "moves tensors between devices, which no meter here follows",
    "target_parameters": "is for parameters outside of linear layers; name layers in target_modules",
    "trainable_token_indices": "is for embeddings; use type TRAINABLE_TOKENS",
    "use_asa": "needs update_and_allocate after each update",
    "use_bdlora": "is for serving on several devices",
    "use_qalora": "is for layers quantised by GPTQ",
    "velora_config": "is a method of its own; stack it: [peft, velora]",
}
PissaIterations = Annotated[str, Field(pattern=r"^pissa_niter_[1-9]\d*$", description="pissa_niter_NUMBER")]
#: Types of options that are narrower here than in peft, or that peft writes otherwise than it means.
NARROWER: dict[str, Any] = {
    "init_lora_weights": bool | Literal["gaussian", "olora", "orthogonal", "pissa"] | PissaIterations,
    "token_indices": Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)],
}
#: A tuner's name in any case.
TypeName = Annotated[str, BeforeValidator(lambda name: name.upper() if isinstance(name, str) else name)]


class TunerOptions(MethodConfig):
    """Options of peft: the type of the tuner, and those of the configuration class that peft has for it."""

    model_config = ConfigDict(strict=True)

    type: TypeName = "LORA"
    """Tuner, as in peft.PeftType: LORA, VERA, IA3, OFT …, or DORA, RSLORA, PISSA, OLORA for LORA with that
    option. All other options are those of its configuration in peft, with its defaults; `target_modules` is
    by default all linears of a block, or what peft names for tuners of other layers."""

    @property
    def base(self) -> str:
        """The tuner's type in peft."""
        return ALIASES.get(self.type, (self.type, {}))[0]

    @model_validator(mode="after")
    def _accepted(self) -> TunerOptions:
        """Let peft check which options go together."""
        if type(self) is not TunerOptions:
            self.configuration()
        return self

    def configuration(self, **others: Any) -> PeftConfig:
        """Return the options as an object of peft; ValueError in one line for what it refuses."""
        cls = installed()[self.base][0]
        given = {key: value for key, value in self.model_dump().items() if key != "type"}
        quiet = {"progressbar": False} if "progressbar" in cls.__dataclass_fields__ else {}
        try:
            return cls(**{**given, **quiet, **others})
        except Exception as error:
            raise ValueError(one_line(error)) from error


@functools.cache
def options_class(name: str) -> type[TunerOptions]:
    """Return the options of a type or alias; UserError for one that is unknown or refused."""
    base, fixed = ALIASES.get(name, (name, {}))
    if base not in installed():
        raise UserError(
            f"method peft: type: peft has no tuner {name!r}; {nearest(name, {*installed(), *ALIASES})}",
            ("type",),
        )
    if reason := why_not(base):
        raise UserError(f"method peft: type {name} cannot be trained here: it {reason}", ("type",))
    config = installed()[base][0]
    hints = get_type_hints(config)
    fields: dict[str, Any] = {"type": (TypeName, name)}
    for each in dataclasses.fields(config):
        if each.init and each.name not in HIDDEN:
            fields[each.name] = _field(each, hints[each.name], fixed)
    made = create_model(f"{name}Options", __base__=TunerOptions, __module__=__name__, **fields)
    made.__doc__ = " ".join((config.__doc__ or "").split("Args:")[0].split())
    return made


def _field(each: dataclasses.Field[Any], hint: Any, fixed: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return an option of peft as a field of pydantic."""
    factory = None if each.default_factory is dataclasses.MISSING else each.default_factory
    default = factory() if factory else each.default
    about: dict[str, Any] = {"description": " ".join(str(each.metadata.get("help", "")).split())}
    if each.name in fixed:
        return Literal[fixed[each.name]], Field(fixed[each.name], **about)
    if each.name in UNUSABLE:
        return unusable(UNUSABLE[each.name], default)
    if each.name == "token_indices":  # without any, nothing trains
        return NARROWER[each.name], Field(**about)
    hint = NARROWER.get(each.name, hint)
    if each.name == "r" and default:
        hint = Annotated[hint, Field(gt=0)]
    elif each.name.endswith("dropout"):
        hint = Annotated[hint, Field(ge=0, lt=1)]
    hint = said_in_one_line(hint)
    about |= {"default_factory": factory} if factory else {"default": default}
    about |= left_out_when_off(default)
    return hint | None if default is None else hint, Field(**about)
