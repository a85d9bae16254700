"""Any tuner of the installed `peft` by name: the model is frozen, and what the tuner adds trains with AdamW.

`{peft: {type: VERA, r: 64}}` has the options of `peft.VeraConfig`. Nothing of a tuner's arithmetic is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from harness.config import OptimConfig
from harness.errors import UnsupportedError, UserError, one_line
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.quantisation.tensor import plain_weights
from methods.parts.tuners import catalogue, injection
from methods.parts.tuners.options import TunerOptions, options_class

#: What tuners raise for options that do not fit the model; exhausted memory is none of them.
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, AssertionError, ImportError, NotImplementedError)


class Peft(Method):
    """Train what a tuner of peft adds to a frozen model; `export` merges it where the tuner can."""

    Config = TunerOptions
    config: TunerOptions
    libraries = ("peft",)
    source = (
        "Mangrulkar et al., PEFT, 2022, https://github.com/huggingface/peft, as installed; the paper of each "
        "tuner stands in its documentation. Departs from it in the default targets: all seven linears of a "
        "block, and in the dtype of adapters, which is that of the model."
    )

    @classmethod
    def config_for(cls, options: Mapping[str, Any]) -> type[MethodConfig]:
        """Return the options of the tuner that `type` names."""
        name = options.get("type", cls.Config().type)
        return options_class(name.upper()) if isinstance(name, str) else cls.Config

    @classmethod
    def choices(cls) -> Mapping[str, str]:
        """Return the tuners of the installed peft."""
        return catalogue.choices()

    @property
    def caps(self) -> Caps:
        """Training only: the weights stay whole."""
        reason = catalogue.UNMERGED.get(self.config.base, "")
        return Caps(stages=frozenset({"pretrain", "finetune"}), no_export=reason, **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Freeze the model and let the tuner change it in place; report what peft warns of."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if any(isinstance(layer, BaseTunerLayer) for layer in model.modules()):
            raise UserError("peft: the model has adapters already; use one method of adapters in a stack")
        names = injection.targets(model, self.config)
        if context.simulated and self.config.base in catalogue.NO_FORECAST:
            reason = catalogue.NO_FORECAST[self.config.base]
            raise UserError(f"peft: type {self.config.type} has no forecast: it {reason}")
        model.requires_grad_(False)
        try:
            said = injection.inject(self.config, model, names, context.seed)
        except REFUSALS as error:
            raise UserError(f"peft: type {self.config.type}: {one_line(error)}") from error
        for text in said:
            context.warn(f"peft: {text}")
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
        ranks = {name: getattr(layer, "r", None) for name, layer in layers.items()}
        context.ranks.update(
            {f"{name}.peft": rank["default"] for name, rank in ranks.items() if isinstance(rank, dict)}
        )
        context.facts.update(
            tuner=self.config.base,
            targets=len(layers),
            trainable=f"what {self.config.type} adds to {len(layers)} layers",
        )
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        """Return AdamW over what the tuner trains."""
        return AdamWStepper(model, optim)

    def export(self, model: nn.Module) -> nn.Module:
        """Merge each adapter and put the plain layers back, in place; UnsupportedError where peft cannot."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        done: tuple[str, ...] = ()
        try:
            for name, layer in list(plain_weights(model).named_modules()):
                if name.startswith(done):
                    continue
                if isinstance(layer, AuxiliaryTrainingWrapper):
                    plain = layer.unload_and_optionally_merge_module(
                        merge=True, safe_merge=False, adapter_names=None
                    )
                elif isinstance(layer, BaseTunerLayer):
                    layer.merge()
                    plain = layer.get_base_layer()
                else:
                    continue
                model.set_submodule(name, plain)
                done = (*done, f"{name}.")
        except REFUSALS as error:
            raise UnsupportedError(
                f"peft: type {self.config.type} cannot be merged: {one_line(error)}"
            ) from error
        for left in ("peft_config", injection.SHARED):
            if hasattr(model, left):
                delattr(model, left)
        return model
