"""Which tuners the installed `peft` has, and which of them train, merge and have a forecast here.

A new release of peft may bring types that this file does not name: they are taken as they come, unless they
need a forward pass of their own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from harness.plugins import import_library

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

#: Names that people use for a tuner with one option set: name -> its type and that option.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
    "PISSA": ("LORA", {"init_lora_weights": "pissa"}),
    "OLORA": ("LORA", {"init_lora_weights": "olora"}),
}
#: Types that cannot train here, and why.
REFUSED = {
    "ADALORA": "needs update_and_allocate after each update and a penalty in the loss",
    "ADAPTION_PROMPT": "puts modules of its own in place of the attention, which nothing can merge",
    "POLY": "mixes its adapters by the task of each text (task_ids), which training data here does not have",
    "SHADOW": "trains a second model beside this one, with a forward pass and a loss of its own",
    "XLORA": "mixes adapters that were trained before",
}
PROMPT = "trains tokens put before each text: they take positions and no plain model can hold them"
OWN_FORWARD = "needs a forward pass of its own around the model"
#: Types whose result is no plain model, and why.
UNMERGED = {
    "BEFT": "it adds biases to layers that have none",
    "LILY": "a router mixes its adapters for each token",
}
#: Types that adapt other layers than all linears of a block: those that peft names for the model.
OWN_TARGETS = ("BEFT", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")

#: Types that share what they train among all layers of a name in `target_modules`.
BY_KIND = ("LILY",)
#: Types that cannot run on tensors without values, and why.
NO_FORECAST = {
    "ADAMSS": "clusters the singular vectors of each weight",
    "FROD": "draws the places of its entries by a condition on values",
    "SHIRA": "finds the places of its entries in a random mask",
    "UNILORA": "counts how often each of its numbers is used",
    "VBLORA": "trains on only where a test of its values for infinity fails",
    "WAVEFT": "selects its entries by a condition on their places",
}


@functools.cache
def installed() -> dict[str, tuple[type[PeftConfig], type[BaseTuner] | None]]:
    """Return the configuration and the tuner of every type of the installed peft, by its name."""
    import_library("peft")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return {
        kind.value: (config, PEFT_TYPE_TO_TUNER_MAPPING.get(kind))
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }


def why_not(name: str) -> str:
    """Return why a type cannot train a causal LM here, "" where it can."""
    from peft import PromptLearningConfig
    from peft.tuners.tuners_utils import BaseTuner

    config, tuner = installed()[name]
    if name in REFUSED:
        return REFUSED[name]
    if issubclass(config, PromptLearningConfig):
        return PROMPT
    inherits = tuner is not None and issubclass(tuner, BaseTuner) and tuner.forward is BaseTuner.forward
    return "" if inherits else OWN_FORWARD


def choices() -> dict[str, str]:
    """Return every type and alias with what it is, or why it is refused, not exported or not forecast."""
    found = {}
    for name, (config, _) in installed().items():
        said = [f"peft.{config.__name__}"]
        said += [f"not exported: {UNMERGED[name]}"] if name in UNMERGED else []
        said += [f"no forecast: it {NO_FORECAST[name]}"] if name in NO_FORECAST else []
        reason = why_not(name)
        found[name] = f"refused: it {reason}" if reason else "; ".join(said)
    for name, (base, options) in ALIASES.items():
        found[name] = f"{base} with " + ", ".join(f"{k}: {str(v).lower()}" for k, v in options.items())
    return dict(sorted(found.items()))
