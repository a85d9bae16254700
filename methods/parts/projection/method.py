"""Base of the methods that train everything with Adam in low-rank subspaces of the gradients.

Options and preparation first, then one update. For each target matrix an update refreshes the subspace when
it is due (`new_projector`; the moments are carried over), projects the gradient, lets Adam work on the
coordinates, and moves the weight (`move`), by default by that step mapped back. All other parameters get
AdamW. A subclass finds the subspaces and schedules their refreshes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import prod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import Caps, Context, Method, MethodConfig, Simulated, StepInfo
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper, copied, gradient
from methods.parts.projection.moments import Rule, carry_over
from methods.parts.projection.projector import Finder, Projection, Projector, Side, find_projector, side_of
from methods.parts.quantisation.tensor import writable
from methods.parts.targets import LINEAR_KINDS, clamp_ranks, random_stream, shapes_of, target_linears

Positive = Annotated[int, Field(gt=0)]
#: Where eps and weight decay act. `torch`: decay first, eps beside the root of the corrected second moment.
#: `official` (GaLore's code): eps beside the root of the uncorrected one, but with 8-bit states as in torch,
#: since bitsandbytes' kernels have it there; decay after the update.
Arithmetic = Literal["torch", "official"]
#: Of bases and moments: float32 at least, or the dtype of the gradient.
Precision = Literal["float32", "gradient"]


class ProjectionConfig(MethodConfig):
    """Options of all methods that project gradients."""

    rank: Positive = 128
    """Dimensions of a subspace; a matrix with a shorter side gets that side, with a warning."""

    period: Positive = 200
    """Updates between two refreshes of a subspace."""

    scale: Annotated[float, Field(gt=0)] = 0.25
    """Factor of the mapped-back step (alpha); with weight decay 0 the same as one of the learning rate."""

    projection: Projection = "std"
    """Which side is projected: `std` the short one (a square matrix on the right), `reverse_std` the long
    one, `left` or `right` always that one, `full` both."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers whose gradients are projected; of a factored layer both factors are."""


class SubspaceConfig(ProjectionConfig):
    """Options of the methods whose subspaces are leading directions of gradients."""

    refresh: Finder = "svd"
    """How the directions are found: `svd` (exact), `gram` (eigenvectors on the short side) or
    `randomized` (subspace iteration, which begins from the old basis where it has one)."""

    signs: Literal["aligned", "free"] | None = None
    """With `moments: keep` alone, the signs of a new basis: `aligned` with the old one column by column
    (default), or `free` as the decomposition leaves them, so that rounding decides (GaLore's code)."""

    @model_validator(mode="before")
    @classmethod
    def _signs_of_kept_moments(cls, options: dict[str, Any]) -> dict[str, Any]:
        kept = options.get("moments", cls.model_fields["moments"].default) == "keep"
        if options.get("signs") is None:
            return {**options, "signs": "aligned" if kept else None}
        if not kept:
            raise ValueError(
                "`signs` matters only where moments are kept; leave it out, or set moments: keep"
            )
        return options


class ProjectionMethod(Method):
    """Train all parameters with small optimizer states for the targets; a subclass adds the stepper."""

    Config: ClassVar[type[MethodConfig]] = ProjectionConfig
    config: ProjectionConfig
    name: ClassVar[str]
    seed = 0
    simulated: Simulated | None = None

    @property
    def caps(self) -> Caps:
        """Return training only; a subclass whose refreshes have one period adds it."""
        return Caps(stages=frozenset({"pretrain", "finetune"}), own_updates=True, **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Make every parameter trainable; report ranks and the size of the states beside Adam's."""
        self.seed, self.simulated = context.seed, context.simulated
        shapes = shapes_of(target_linears(model, self.config.targets))
        ranks = clamp_ranks(self.name, self.config.rank, shapes, context)
        states = sum(map(self.state_elements, shapes.values()))
        adam_states = sum(2 * prod(shape) for shape in shapes.values())
        if states > adam_states:
            context.warn(f"{self.name}: bases and moments are larger than Adam's moments at this rank")
        if getattr(self.config, "moments", None) == "paper":
            context.warn(
                f"{self.name}: with moments: paper training diverges; with moments: square it does not"
            )
        context.ranks.update(ranks)
        context.facts.update(
            trainable="all parameters",
            projected_matrices=len(shapes),
            state_elements=states,
            adam_state_elements=adam_states,
        )
        return model.requires_grad_(True)

    def state_elements(self, shape: tuple[int, ...]) -> int:
        """Return the elements that the optimizer stores for one matrix (out, in)."""
        return state_elements(shape, self.config.rank, self.config.projection)


class SubspaceMethod(ProjectionMethod):
    """A method whose subspaces are leading directions of gradients."""

    Config: ClassVar[type[MethodConfig]] = SubspaceConfig
    config: SubspaceConfig
    later: ClassVar[Mapping[str, int]] = {"signs": 2}

    @property
    def version(self) -> int:
        """Return 2 since kept moments get bases of aligned signs; with free signs they are as before."""
        return 2 if self.config.signs == "aligned" else 1


def state_elements(shape: tuple[int, ...], rank: int, projection: Projection) -> int:
    """Return the elements of the bases of one matrix (out, in) and of two moments of its coordinates.

    Zhao et al., GaLore, arXiv 2403.03507, table 1; `rank` is at most the short side.
    """
    out, inputs = shape
    rank, side = min(rank, *shape), side_of(shape, projection)
    if side == "both":
        return rank * (out + inputs) + 2 * rank * rank
    return rank * out + 2 * rank * inputs if side == "left" else rank * inputs + 2 * rank * out


@dataclass
class Matrix:
    """Subspace and clock of one target matrix.

    `period` and `next_refresh` count updates from 0; `notes` are plain values of a subclass. `norm` is that
    of the last update, where its growth is limited.
    """

    side: Side
    rank: int
    period: int
    projector: Projector | None = None
    next_refresh: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    norm: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all fields as tensors and plain values."""
        bases = {} if self.projector is None else self.projector.tensors()
        return {**vars(self), "projector": bases, "notes": deepcopy(self.notes)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> Matrix:
        """Return the matrix of a `state_dict`, with copies of the tensors."""
        bases = copied(state["projector"], device)
        projector = Projector(**bases) if bases else None
        return cls(**{**copied(state, device), "projector": projector, "notes": deepcopy(state["notes"])})


class ProjectedStepper(AdamWStepper):
    """AdamW, within a subspace for the weights of the target layers.

    By default a subspace is the leading directions of a gradient, found by `finder` in `precision`.
    """

    #: What happens to the moments when a subspace is replaced; whether its signs are turned as the old one's.
    rule: Rule = "keep"
    aligned = True
    finder: Finder = "svd"
    precision: Precision = "float32"
    arithmetic: Arithmetic = "torch"

    def __init__(self, model: nn.Module, optim: OptimConfig, config: ProjectionConfig, seed: int) -> None:
        super().__init__(model, optim)
        self.scale, self.seed = config.scale, seed
        self.matrices = {
            f"{name}.weight": Matrix(
                side_of(tuple(layer.weight.shape), config.projection),
                min(config.rank, *layer.weight.shape),
                config.period,
            )
            for name, layer in target_linears(model, config.targets).items()
            if f"{name}.weight" in self.parameters
        }
        self.updates = 0
        self._counts: dict[str, int] = {}  # updates of each parameter, for the official arithmetic
        self._refreshes = self._skipped = 0  # of the update under way, as are the ranks that changed
        self._new_ranks: dict[str, int] = {}

    def new_projector(self, name: str, matrix: Matrix, gradient: Tensor) -> Projector | None:
        """Return a projector for a finite gradient, or None to keep the old one."""
        generator = random_stream(self.seed, name, self.updates, gradient.device)
        found, _ = find_projector(
            gradient, matrix.side, matrix.rank, self.finder, generator, matrix.projector
        )
        if self.precision == "float32":
            return found
        return Projector(**{side: basis.to(gradient.dtype) for side, basis in found.tensors().items()})

    def after_refresh(self, matrix: Matrix, old: Projector | None) -> None:
        """Set `next_refresh`; the update under way is `self.updates`."""
        matrix.next_refresh = self.updates + matrix.period

    def after_projection(self, name: str, matrix: Matrix, coordinates: Tensor) -> None:
        """Look at the coordinates of a gradient."""

    def after_step(self) -> None:
        """Decide about the next update, when all matrices have had this one."""

    def step(self) -> StepInfo:
        """Update what has not been updated inside backward, and report refreshes."""
        info = super().step()
        self.after_step()
        self.updates += 1
        refreshes, skipped, new_ranks = self._refreshes, self._skipped, self._new_ranks
        self._refreshes, self._skipped, self._new_ranks = 0, 0, {}
        return replace(
            info,
            refreshed=refreshes > 0,
            refresh_next=any(matrix.next_refresh <= self.updates for matrix in self.matrices.values()),
            ranks=new_ranks or None,
            refreshes=refreshes,
            skipped=skipped,
        )

    def refresh_soon(self) -> None:
        """Refresh all subspaces in the next update, so that a short run shows what that costs."""
        for matrix in self.matrices.values():
            matrix.next_refresh = self.updates

    @torch.no_grad()
    def update(self, names: Sequence[str], **overrides: float) -> None:
        """Update the named parameters from their gradients; `overrides` are for those not projected."""
        plain = [name for name in names if name not in self.matrices]
        if self.arithmetic == "torch":
            super().update(plain, **overrides)
        else:
            self._update_as_official(plain)
        for name in names:
            if name in self.matrices:
                self.update_matrix(name, self.matrices[name])

    def _update_as_official(self, names: Sequence[str]) -> None:
        """Update parameters that are not projected; those of one eps together, mostly all."""
        together: dict[float, list[str]] = {}
        for name in names:
            together.setdefault(self._next_eps(name), []).append(name)
        for eps, group in together.items():
            super().update(group, eps=eps, weight_decay=0.0)
        for name in names:
            self.parameters[name].mul_(1 - self.lr * self.optim.weight_decay)

    def update_matrix(self, name: str, matrix: Matrix) -> None:
        """Update the weight of a target from its gradient."""
        grad = gradient(self.parameters[name])
        if matrix.next_refresh <= self.updates and not self._refresh(name, matrix, grad):
            return
        assert matrix.projector is not None
        coordinates = matrix.projector.project(grad)
        self.after_projection(name, matrix, coordinates)
        decay = 1 - self.lr * self.optim.weight_decay
        with writable(self.parameters[name]) as weight:
            if decay != 1 and self.arithmetic == "torch":
                weight.mul_(decay)
            self.move(name, matrix, weight, coordinates)
            if decay != 1 and self.arithmetic == "official":
                weight.mul_(decay)

    def move(self, name: str, matrix: Matrix, weight: Tensor, coordinates: Tensor) -> None:
        """Add Adam's step on the coordinates of the gradient to the weight, mapped back."""
        assert matrix.projector is not None
        matrix.projector.add_back(weight, self.adam_step(name, coordinates, self.lr), self.scale)

    def adam_step(self, name: str, coordinates: Tensor, lr: float) -> Tensor:
        """Return Adam's step on the coordinates of a gradient, which points down."""
        if name not in self.states:
            self.states[name] = self.adam.new_state(coordinates)
        step = torch.zeros_like(coordinates)
        common = {"eps": self._next_eps(name), "weight_decay": 0.0}
        self.adam.update([step], [coordinates], [self.states[name]], lr, **common)
        return step

    def _next_eps(self, name: str) -> float:
        """Return the eps of a parameter's next update, which is counted here: a state's own count may be on
        a GPU, and reading it would wait for all work there.

        bitsandbytes' kernels have eps beside the corrected root, those for 32 bits too.
        """
        if self.arithmetic == "torch":
            return self.optim.eps
        self._counts[name] = self._counts.get(name, 0) + 1
        if self.optim.state_bits == 8:
            return self.optim.eps
        return self.optim.eps / (1 - self.optim.betas[1] ** self._counts[name]) ** 0.5

    def bias_correction(self, name: str) -> float:
        """Return sqrt(1 - b2^t) / (1 - b1^t) of the last update, by which the official arithmetic multiplies
        the learning rate and not the step; 1 for torch's.
        """
        if self.arithmetic == "torch":
            return 1.0
        first, second = (1 - beta ** self._counts[name] for beta in self.optim.betas)
        return second**0.5 / first

    def _refresh(self, name: str, matrix: Matrix, grad: Tensor) -> bool:
        """Replace the subspace; return False when the gradient is not finite and the matrix is left alone.

        Reading values stalls a GPU, so only refreshes do it. After a failure the old basis serves until
        the next refresh; without one the next gradient is tried.
        """
        old, finite = matrix.projector, bool(torch.stack(torch.aminmax(grad)).isfinite().all())
        try:
            new = self.new_projector(name, matrix, grad) if finite else None
        except torch.linalg.LinAlgError:
            new = None
        if new is None:
            self._skipped += not finite
            matrix.next_refresh = self.updates + (1 if old is None else matrix.period)
            return finite and old is not None
        if old is not None and self.aligned:
            new.align(old)
        if old is not None and name in self.states:
            self.states[name] = carry_over(self.adam, self.states[name], self.rule, old, new, grad)
        if old is None or old.rank != new.rank:
            self._new_ranks[name.removesuffix(".weight")] = new.rank
        matrix.projector, matrix.rank = new, new.rank
        self._refreshes += 1
        self.after_refresh(matrix, old)
        return True

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the moments of every parameter and, of projected ones, `<parameter>.left`, `.right` and
        `.norm`.
        """
        yield from super().state_tensors()
        for name, matrix in self.matrices.items():
            if matrix.projector is not None:
                yield from ((f"{name}.{side}", basis) for side, basis in matrix.projector.tensors().items())
            if matrix.norm is not None:
                yield f"{name}.norm", matrix.norm

    def state_dict(self) -> dict[str, Any]:
        """Return moments, subspaces and clocks."""
        matrices = {name: matrix.state_dict() for name, matrix in self.matrices.items()}
        return {"moments": super().state_dict(), "matrices": matrices, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore copies of a saved state; ValueError when other parameters were trained or projected."""
        super().load_state_dict(state["moments"])
        if unknown := sorted(state["matrices"].keys() ^ self.matrices.keys()):
            raise ValueError(f"other matrices were projected when this state was saved: {', '.join(unknown)}")
        self.matrices = {
            name: Matrix.from_state_dict(saved, self.parameters[name].device)
            for name, saved in state["matrices"].items()
        }
        self._counts = {name: int(saved["step"]) for name, saved in self.states.items()}
        self.updates = state["updates"]
