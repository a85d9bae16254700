"""Full fine-tuning or pre-training: every parameter is trained. The reference row of every table."""

from __future__ import annotations

from torch import nn

from harness.config import OptimConfig
from harness.method import Caps, Context, Method
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper


class Full(Method):
    """Train all parameters with AdamW; the model is not changed, and there are no options."""

    source = "AdamW: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101."
    #: Every stage; `compress` evaluates the model as it was loaded.
    caps = Caps(**TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Make every parameter trainable, whatever a method below in the stack has frozen."""
        context.facts["trainable"] = "all parameters"
        return model.requires_grad_(True)

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        """Return AdamW over all parameters."""
        return AdamWStepper(model, optim)
