"""Compression by any allocator with any factoriser: the base of all methods that are such a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from harness.config import OptimConfig, Share
from harness.errors import UserError
from harness.factored import FactoredLinear, empty_factors, factor
from harness.method import Calibration, Caps, Context, Method, MethodConfig
from methods.parts.allocation.allocator import Problem
from methods.parts.allocation.budget import Budget, Counted
from methods.parts.allocation.catalogue import AnyAllocator
from methods.parts.allocation.uniform import Uniform
from methods.parts.calibration.blocks import Place
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.decompositions import Decomposing, text_of
from methods.parts.factors.factorisers import AnyFactoriser, Whiten, relative_error
from methods.parts.factors.kernel import Factors
from methods.parts.factors.method import parameters, reduction_facts, train_factors_and_norms
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.targets import LINEAR_KINDS, dense_linears, shapes_of

#: How far below and above its target a reduction may be before a warning says so.
BELOW, ABOVE = 1e-3, 1e-2
Positive = Annotated[int, Field(gt=0)]


class CompressionConfig(MethodConfig):
    """Options of all compressions by an allocator and a factoriser."""

    allocator: AnyAllocator = Uniform()
    """How much of each matrix is kept: `uniform`, `welore`, `owl`, `strs`, `bayes`, or a section with `type`
    and options, as `{type: per_type, keep: {q_proj: 0.5, o_proj: 0.7}}`."""

    factoriser: AnyFactoriser = Whiten()
    """How a matrix is factored: `svd`, `asvd`, `awsvd`, `whiten`, `pca`, or a section with `type` and
    options."""

    reduction: Share = 0.2
    """The share that is taken away."""

    counted: Counted = "linears"
    """Of what: of the parameters of the targets (`linears`), of `all` parameters of the model, or of the
    `ranks` of the targets (WeLore's ERR)."""

    multiple: Positive = 1
    """Every rank is a multiple of this number; 8 suits tensor cores."""

    sequential: bool = False
    """Take the statistics of a block from the outputs of the compressed blocks before it, not of the whole
    model."""

    damping: Annotated[float, Field(ge=0)] | None = None
    """What is added to the diagonal of second moments, times its mean. Null is 0.01 where an input has fewer
    than 4 tokens for each feature, with a warning, else 0."""

    errors: bool = False
    """Record the relative error of each layer's output on the calibration text; takes products of features,
    which not every factoriser needs."""

    place: Place = "device"
    """Where the hidden states of the calibration text wait between two blocks: on the `device`, or on the
    `host`."""

    train: Literal["lrc", "none"] = "none"
    """`lrc` trains the factors and all RMSNorm weights; `none` leaves training to a method on top."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers that take part; embeddings and the output head never do."""

    @field_validator("allocator", "factoriser", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @property
    def reads_text(self) -> bool:
        """Whether factors follow from statistics of the calibration text."""
        return self.factoriser.need != "nothing" or self.errors

    @model_validator(mode="after")
    def _options_about_text_act(self) -> Self:
        kind = self.factoriser.type
        if self.damping is not None and self.factoriser.need != "products":
            raise ValueError(f"`damping` is of second moments, which {kind} does not read; leave it out")
        for name in ("sequential", "place"):
            if not self.reads_text and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` is about text, which {kind} does not read; leave it out")
        return self


class Compression(Method):
    """Factor linear layers at ranks that an allocator chooses."""

    Config: ClassVar[type[MethodConfig]] = CompressionConfig
    config: CompressionConfig
    name: ClassVar[str] = "compress"

    approximations: ClassVar[Mapping[str, str]] = {"uniform": "every matrix keeps the same share"}

    @property
    def caps(self) -> Caps:
        """Return the stages that start from trained weights."""
        because = "random weights have nothing to leave out"
        return Caps(
            stages=frozenset({"finetune", "compress"}),
            because=because,
            value_dependent=self.config.allocator.value_dependent,
            own_updates=self.config.train != "none",
            reads_text=self.config.allocator.reads_text or self.config.reads_text,
            **TRAIN_OPTIONS,
        )

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Choose ranks, then factor block after block, in place."""
        layers = dense_linears(model, self.config.targets)
        config, before = self.config, parameters(model)
        budget = self._budget(layers, before)
        chosen = self._choose(model, layers, budget, context)
        if context.simulated:
            for name, rank in chosen.items():
                made = empty_factors(layers[name], rank, config.factoriser.centred)
                for parameter in made.parameters():  # real where a run is counted
                    nn.init.zeros_(parameter)
                model.set_submodule(name, made.requires_grad_(layers[name].weight.requires_grad))
        else:
            for name in layers.keys() - chosen.keys():
                del layers[name]
            self._factor(model, layers, chosen, context)
        if config.train == "lrc":
            train_factors_and_norms(model)
        measured = budget.measured(chosen)
        self._warn_of(budget, chosen, measured, context)
        context.ranks.update(chosen)
        context.facts.update(
            reduction_facts(budget.shapes, chosen),
            target_reduction=config.reduction,
            counted=config.counted,
            measured_reduction=measured,
            parameter_ratio_targets=1 - measured["linears"],
            parameter_ratio=parameters(model) / before,
            lrc=list(chosen),
        )
        return model

    def _budget(self, layers: Mapping[str, nn.Linear], parameters: int) -> Budget:
        config = self.config
        new = [name for name, layer in layers.items() if config.factoriser.centred and layer.bias is None]
        return Budget(
            shapes_of(layers), parameters, config.reduction, config.counted, config.multiple, frozenset(new)
        )

    def _warn_of(
        self, budget: Budget, chosen: Mapping[str, int], measured: Mapping[str, float], context: Context
    ) -> None:
        """Warn of a target that was missed, and of factors that are larger than what they replace."""
        reached, target = measured[budget.counted], self.config.reduction
        if not target - BELOW <= reached <= target + ABOVE:
            at_least = all(rank <= budget.multiple for rank in chosen.values())
            least = f"; the lowest rank is {budget.multiple}" if at_least else ""
            context.warn(
                f"{self.name}: {reached:.4f} of {budget.counted} went, and the target was {target:.4f}{least}"
            )
        if measured["linears"] < 0:
            context.warn(
                f"{self.name}: the factors have more parameters than the matrices that they replace; count "
                "linears instead of ranks, or ask for more"
            )

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper | None:
        """Return AdamW over factors and norms, or None when `train` is `none`."""
        return AdamWStepper(model, optim) if self.config.train == "lrc" else None

    def text(self, context: Context) -> Calibration:
        """Return the calibration text; UserError where there is none."""
        return text_of(context, self.name)

    @property
    def decomposing(self) -> Decomposing:
        """How layers are decomposed."""
        return Decomposing(self.config.factoriser, self.config.damping, self.config.place, self.name)

    def _choose(
        self, model: nn.Module, layers: Mapping[str, nn.Linear], budget: Budget, context: Context
    ) -> dict[str, int]:
        given = None if context.simulated is None else context.simulated.ranks
        if given is not None:
            for name, rank in given.items():
                if not 0 < rank <= min(budget.shapes.get(name, (0,))):
                    raise UserError(f"the given rank {rank} of {name} fits no target layer of this model")
            return dict(given)
        allocator = self.config.allocator
        if context.simulated and allocator.value_dependent:
            allocator = Uniform()
        return allocator.allocate(Problem(model, layers, budget, self.decomposing, context))

    def _factor(
        self,
        model: nn.Module,
        layers: dict[str, nn.Linear],
        chosen: Mapping[str, int],
        context: Context,
    ) -> None:
        """Replace layers by their factors, block after block; each is taken out of `layers`, and so freed."""
        config = self.config
        found = self.decomposing.each(
            model, layers, chosen, context, config.sequential, products=config.errors
        )
        for name, decomposition, inputs in found:
            self._replace(model, name, layers.pop(name), decomposition.factors(chosen[name]), inputs, context)

    def _replace(
        self,
        model: nn.Module,
        name: str,
        layer: nn.Linear,
        factors: Factors,
        inputs: InputStatistics | None,
        context: Context,
    ) -> FactoredLinear:
        """Replace a layer by its factors, and return these."""
        if self.config.errors:
            assert inputs is not None
            errors = context.facts.setdefault("output_errors", {})
            errors[name] = relative_error(layer.weight, factors, inputs)
        made = factor(layer, factors.up, factors.down, factors.offset)
        model.set_submodule(name, made.requires_grad_(layer.weight.requires_grad))
        return made
