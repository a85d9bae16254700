"""Score the layers of a model by the outliers among the entries of their weights, seen with their inputs.

With A_ij = |W_ij| |X_j|, where |X_j| is the norm of feature j over all tokens of the samples, the score of a
layer is the percentage of all entries A of its linears that exceed `threshold` times their mean (Yin et al.,
OWL, ICML 2024, arXiv 2310.05175, equation 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Batch, Caps, Context, MethodConfig
from methods.parts.calibration.outliers import score
from methods.parts.sampling.method import Positive, SamplingConfig, SamplingMethod
from methods.parts.sampling.schedule import layers_of


class WeightedConfig(SamplingConfig):
    """Options of the methods that do not draw all layers alike."""

    sampling: Literal["outliers", "uniform", "decrease", "increase"] = "outliers"
    """What layers are drawn in proportion to: the outliers of their weights, 1 for all (`uniform`), N, …, 1
    (`decrease`) or 1, …, N (`increase`)."""

    scores: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """With `sampling: outliers`, one score a layer; null counts outliers on the training text."""

    threshold: Annotated[float, Field(ge=1)] | None = None
    """With `sampling: outliers` and no scores, how many times the mean an outlier is (M); 13, as in the
    scores that ship with OwLore's code."""

    samples: Positive | None = None
    """With `sampling: outliers` and no scores, the sequences of training text for it; 128."""

    @model_validator(mode="before")
    @classmethod
    def _without_effect(cls, options: dict[str, Any]) -> dict[str, Any]:
        scored = options.get("sampling", "outliers") == "outliers"
        counted = scored and options.get("scores") is None
        for name, default, matters, where in (
            ("scores", None, scored, "sampling: outliers"),
            ("threshold", 13.0, counted, "sampling: outliers and without scores"),
            ("samples", 128, counted, "sampling: outliers and without scores"),
        ):
            if options.get(name) is None:
                options = {**options, name: default if matters else None}
            elif not matters:
                raise ValueError(f"`{name}` matters only with {where}; leave it out")
        return options


class WeightedMethod(SamplingMethod):
    """Train layers that are drawn by weights; a subclass adds the stepper."""

    Config: ClassVar[type[MethodConfig]] = WeightedConfig
    config: WeightedConfig

    @property
    def caps(self) -> Caps:
        """Return that outliers are counted on text."""
        counted = self.config.sampling == "outliers" and self.config.scores is None
        return replace(super().caps, reads_text=counted)

    def find_weights(self, model: nn.Module, context: Context) -> tuple[float, ...]:
        """Return what layers are drawn in proportion to; UserError for scores that cannot be used.

        Without text, as in a forecast, all weigh the same.
        """
        count, config = len(layers_of(model)), self.config
        orders = {"uniform": [1] * count, "decrease": range(count, 0, -1), "increase": range(1, count + 1)}
        if config.sampling in orders:
            return tuple(map(float, orders[config.sampling]))
        scores = config.scores
        if scores is not None and len(scores) != count:
            said = f"{self.name}: scores are {len(scores)}, but the model has {count} layers"
            raise UserError(f"{said}; give one a layer")
        if scores is None and context.calibration is None:
            context.warn(
                f"{self.name}: without text there are no outliers to count, so layers are drawn uniformly"
            )
            return (1.0,) * count
        if scores is None:
            assert context.calibration is not None
            assert config.samples is not None
            assert config.threshold is not None
            scores = outlier_scores(
                model, context.calibration.batches(config.samples), config.samples, config.threshold
            )
            context.facts["scores"] = [round(score, 6) for score in scores]
        if not any(scores):
            at = config.threshold
            counted = "" if at is None else f" at a threshold of {at:g}; give a lower one, or"
            raise UserError(f"{self.name}: all scores are 0{counted or '; give'} scores above 0")
        return scores


@torch.no_grad()
def outlier_scores(
    model: nn.Module, batches: Iterator[Batch], samples: int, threshold: float
) -> tuple[float, ...]:
    """Return the score of each layer, 0 to 100 / threshold, on the first `samples` sequences of batches.

    Layers see the outputs of those below as they are. What they make of padding does not count.
    """
    linears = [
        [part for part in layer.modules() if isinstance(part, nn.Linear)] for layer in layers_of(model)
    ]
    squares: dict[nn.Module, Tensor] = {}
    counted = torch.empty(0)  # by token of a batch; set before each pass

    def add(linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].reshape(-1, inputs[0].shape[-1])[counted]
        exact = flat.to(torch.promote_types(flat.dtype, torch.float32))
        squares[linear] = squares.get(linear, 0) + exact.square().sum(0)

    hooks = [linear.register_forward_pre_hook(add) for within in linears for linear in within]
    trains, decoder = model.training, _decoder(model)
    model.eval()
    try:
        while samples > 0:
            ids, labels = (rows[:samples] for rows in next(batches))
            counted = labels.flatten() >= 0
            decoder(input_ids=ids, use_cache=False)
            samples -= len(ids)
    finally:
        model.train(trains)
        for hook in hooks:
            hook.remove()
    seen = [[(linear.weight, squares[linear].sqrt()) for linear in within] for within in linears]
    return tuple(score(pairs, threshold) for pairs in seen)


def _decoder(model: Any) -> Any:
    """Return the model without its head, whose logits nothing reads."""
    return getattr(model, "base_model", model)
