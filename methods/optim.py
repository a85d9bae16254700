"""Any optimizer of torch by its name: `{optim: {type: Muon, momentum: 0.95}}`.

Its options are the arguments of its constructor; rate, schedule, weight decay and clipping are those of the
run. It is first tried on small parameters (`methods/parts/torch_optimizers/trial.py`): one that does not
follow the rate, needs a closure or refuses dense gradients is refused. Nothing of an optimizer's arithmetic
is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from harness.config import OptimConfig
from harness.errors import UnsupportedError
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.targets import target_matrices
from methods.parts.torch_optimizers import catalogue, options
from methods.parts.torch_optimizers.averages import remove_mode
from methods.parts.torch_optimizers.stepper import OptimizerStepper


class AnyOptimizer(Method):
    """Train what has `requires_grad` with any optimizer of torch, and matrices apart where it wants them."""

    Config = options.OptimizerOptions
    config: options.OptimizerOptions
    source = (
        "The class that `type` names, unchanged, such as Muon (Liu et al. 2025, arXiv 2502.16982), Adafactor "
        "(Shazeer & Stern 2018, arXiv 1804.04235) and Lion (Chen et al. 2023, arXiv 2302.06675). "
        f"Installed: {', '.join(filter(None, map(catalogue.package_and_version, catalogue.MODULES)))}."
    )

    def __init__(self, config: options.OptimizerOptions) -> None:
        super().__init__(config)
        self.context = Context()

    @classmethod
    def config_for(cls, given: Mapping[str, Any]) -> type[MethodConfig]:
        """Return the options of the optimizer that `type` names."""
        name = given.get("type", cls.Config.model_fields["type"].default)
        return options.options_class(name) if isinstance(name, str) else cls.Config

    @classmethod
    def choices(cls) -> Mapping[str, str]:
        """Return the installed optimizers with their options, and why some cannot be used."""
        return options.choices()

    @property
    def caps(self) -> Caps:
        """Return updates per layer where an optimizer for each parameter does the same as one for all."""
        # A list of methods has no optimizer of which to know it.
        if type(self.config) is options.OptimizerOptions or self.config.trial.apart:
            return Caps(own_updates=True, per_layer=True)
        why = f"{self.config.type} does something else with one optimizer for each parameter"
        return Caps(own_updates=True, because=why)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Leave the model as it is: what trains is up to the methods before this one, else everything."""
        self.context = context
        if broken := self.config.trial.cannot_resume:
            context.facts["cannot_resume"] = broken
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> OptimizerStepper:
        """Return a stepper over the optimizer; UnsupportedError for a setting of train that it ignores."""
        config, choice, trial = self.config, self.config.choice, self.config.trial
        self._refuse_ignored(optim)
        apart = config.rest == "adamw"
        targets = target_matrices(model, config.targets) if config.group or apart else set()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return OptimizerStepper(
            model,
            optim,
            lambda parameters, lr: choice.make(parameters, targets, lr, optim.weight_decay),
            trained - targets if apart else (),
            rest_rate=config.rest_rate,
            draws=trial.draws,
            cannot_resume=trial.cannot_resume,
            context=self.context,
        )

    def _refuse_ignored(self, optim: OptimConfig) -> None:
        """Raise UnsupportedError for a setting of train that the optimizer would not see."""
        name, usual = self.config.type, OptimConfig()
        if optim.weight_decay and not self.config.choice.decays:
            raise UnsupportedError(f"{name} takes no weight decay; set train.weight_decay to 0")
        for setting in ("betas", "eps") if self.config.rest == "same" else ():
            if getattr(optim, setting) != getattr(usual, setting):
                raise UnsupportedError(
                    f"train.{setting} is AdamW's, and all is trained by {name}; leave it out"
                )

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model with the weights to evaluate, where those to train are others."""
        remove_mode(model)
        return model
