"""OwLore: layers are sampled by their outliers, and GaLore trains the matrices of those that were drawn.

As in LISA a few layers train at a time, for `interval` updates, and embeddings, head and final norm always.
A layer is drawn in proportion to its score, the share of outliers among its weights. GaLore's options are for
the attention and feed-forward matrices of the layers; AdamW trains all else.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import nn

from harness.config import OptimConfig
from harness.method import Caps, Context
from methods.galore import GaLore, GaLoreConfig, GaLoreStepper
from methods.parts.sampling.method import Positive
from methods.parts.sampling.outliers import WeightedConfig, WeightedMethod
from methods.parts.sampling.projected import Returning, SampledProjectedStepper
from methods.parts.sampling.schedule import layers_of


class OwLoreConfig(WeightedConfig, GaLoreConfig):
    """Hyperparameters of OwLore: those of sampling, then those of GaLore; defaults as in the paper's code."""

    layers: Positive = 5
    """Layers (blocks) that train at a time; at most those of the model."""

    interval: Positive = 50
    """Updates until the layers are drawn anew."""

    returning: Returning | None = None
    """With `states: keep`, the subspaces of a layer that is drawn again: `stale`, until `period` updates of
    its own are over (default, paper's code), or `refresh` them at once."""

    rank: Positive = 256
    """Dimensions of a subspace; a matrix with a shorter side gets that side, with a warning."""

    period: Positive = 100
    """Updates of a layer between two refreshes of its subspaces."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the mapped-back step (alpha)."""

    @model_validator(mode="before")
    @classmethod
    def _returning_to_what_was_kept(cls, options: dict[str, Any]) -> dict[str, Any]:
        kept = options.get("states") == "keep"
        if options.get("returning") is None:
            return {**options, "returning": "stale" if kept else None}
        if not kept:
            raise ValueError("`returning` matters only with states: keep; leave it out")
        return options


class OwLore(WeightedMethod, GaLore):
    """Train layers sampled by outliers with GaLore, and embeddings, head and norms with AdamW."""

    Config = OwLoreConfig
    config: OwLoreConfig
    name = "owlore"
    source = (
        "Li et al., OwLore (Outlier-weighed Layerwise Sampling), ACL Findings 2025, arXiv 2405.18380; scores "
        "of Yin et al., OWL, ICML 2024, arXiv 2310.05175; GaLore: Zhao et al., ICML 2024, arXiv 2403.03507. "
        "By default it departs from the code in dropping the states of layers that stop, so that subspaces "
        "are found anew (`states`, `returning`), in scores from training text, in draws that follow from the "
        "seed and the interval alone, and in what GaLore departs in here."
    )

    @property
    def caps(self) -> Caps:
        """Return a mean period: a layer that is drawn twice running keeps its subspaces."""
        config = self.config
        refreshes = 1 if config.states == "keep" else ceil(config.interval / config.period)
        mean = config.period if config.states == "keep" else config.interval // refreshes
        return replace(super().caps, period=None, mean_period=max(1, mean))

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Report ranks and states, weight the layers, and make trainable what the first interval trains."""
        GaLore.prepare(self, model, context)
        WeightedMethod.prepare(self, model, context)
        layers = layers_of(model)
        if self.config.states != "keep":
            for key in ("state_elements", "adam_state_elements"):
                context.facts[key] = context.facts[key] * self.config.layers // len(layers)
        inside = {id(parameter) for parameter in layers.parameters()}
        outside = [p.numel() for p in model.parameters() if p.requires_grad and id(p) not in inside]
        context.facts["outside_state_elements"] = 2 * sum(outside)
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> OwLoreStepper:
        """Return a stepper that draws layers and refreshes their subspaces."""
        config, schedule = self.config, self.schedule(model)
        return OwLoreStepper(
            model, optim, config, self.seed, schedule=schedule, config=config, returning=config.returning
        )


class OwLoreStepper(SampledProjectedStepper, GaLoreStepper):
    """GaLore in the layers that were drawn."""
