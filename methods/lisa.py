"""LISA: a few layers train at a time, drawn anew every `interval` updates; embeddings and head always do.

Layers are drawn uniformly, without replacement. One that was drawn trains with all its parameters, by AdamW.
The others are frozen: they have no gradients, and by default no optimizer states.
"""

from __future__ import annotations

from torch import nn

from harness.config import OptimConfig
from methods.parts.sampling.method import SampledStepper, SamplingMethod


class Lisa(SamplingMethod):
    """Train sampled layers, embeddings, head and final norm with AdamW."""

    name = "lisa"
    source = (
        "Pan et al., LISA, NeurIPS 2024, arXiv 2403.17919, algorithm 1. The paper's runs saved and loaded "
        "the model in every interval, which resets all of AdamW's states; its code keeps them all, so that "
        "memory grows to that of full fine-tuning. By default it departs from both: states are dropped with "
        "their layers, and those of embeddings and head go on. `states` brings either back. Draws follow "
        "from the seed and the number of the interval alone. The paper trains no model from scratch."
    )

    def stepper(self, model: nn.Module, optim: OptimConfig) -> SampledStepper:
        """Return AdamW that draws layers periodically."""
        return SampledStepper(model, optim, schedule=self.schedule(model), config=self.config)
