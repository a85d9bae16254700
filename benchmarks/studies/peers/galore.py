"""GaLore beside the optimizer of its authors (PyPI: galore-torch): a plain step, a refresh, a training step.

The gradients of refreshes are products of two Gaussian factors, column i scaled by 1/i, plus white noise of a
tenth of their norm. The warm start begins from the subspace of an earlier gradient, whose factors were
others by a tenth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.studies.peers.bench import Case, Duel, agreement, peer_package, quartiles
from harness.config import OptimConfig
from harness.method import Context
from harness.plugins import build
from methods.parts.projection.method import ProjectedStepper
from methods.parts.projection.projector import Finder, Projector, find_projector, side_of
from methods.parts.targets import random_stream

#: Output, input and rank of an attention and a feed-forward matrix (paper, table 2 and section 5).
SHAPES = {
    "60M attention": (512, 512, 128),
    "60M feed-forward": (1376, 512, 128),
    "1B attention": (2048, 2048, 512),
    "1B feed-forward": (5461, 2048, 512),
    "7B attention": (4096, 4096, 1024),
    "7B feed-forward": (11008, 4096, 1024),
}
TINY = {"tiny": (48, 32, 8)}
PEER = "galore_torch"
NEVER = 10**9
SCALE, LR, EPS = 0.25, 1e-3, 1e-6
PLAIN_TARGET, RANDOMIZED_TARGET, GRAM_TARGET = 0.75, 0.10, 0.5
TOLERANCE = 1e-4
CPU = torch.device("cpu")


def cases(quick: bool) -> Iterator[Case]:
    """Yield for each shape a step between two refreshes, and refreshes by the quicker finders."""
    works: dict[str, tuple[Callable[..., Duel], float]] = {
        "plain step": (plain_step, PLAIN_TARGET),
        "refresh, randomized, cold": (partial(refresh, "randomized", False), RANDOMIZED_TARGET),
        "refresh, randomized, warm": (partial(refresh, "randomized", True), RANDOMIZED_TARGET),
        "refresh, gram": (partial(refresh, "gram", False), GRAM_TARGET),
    }
    for name, (out, inputs, rank) in (TINY if quick else SHAPES).items():
        for work, (set_up, target) in works.items():
            shape = f"{name}: {out} x {inputs}, rank {rank}, float32"
            heavy = out * inputs > 2**23
            yield Case("galore", work, shape, PEER, partial(set_up, out, inputs, rank), target, heavy)


# ---------------------------------------------------------------------------------------- a plain step
def plain_step(out: int, inputs: int, rank: int) -> Duel:
    """Project, apply Adam, project back and update one matrix, in the subspace that the peer has found."""
    both = side_by_side(
        (out, inputs),
        lambda weight: peer_optimizer([], [weight], rank),
        *(rank, "galore"),
        arithmetic="official",
        signs="free",
    )
    products = _floor(both.peer.step, both.start, both.gradient, both.projector)
    facts = {**both.facts, "its two matrix products alone / peer": products}
    return Duel(both.stepper.step, both.peer.step, facts)


class Pair(NamedTuple):
    """The peer's optimizer and our stepper on copies of the matrix `start`, after as many updates."""

    peer: Any
    stepper: ProjectedStepper
    start: Tensor
    gradient: Tensor
    projector: Projector
    facts: dict[str, str]


def side_by_side(
    shape: tuple[int, int], peer: Callable[[nn.Parameter], Any], rank: int, method: str, **options: Any
) -> Pair:
    """Let the peer's first step find a projection, and a method use it; return both four updates later."""
    generator = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(*shape, generator=generator)
    gradient = torch.randn(*shape, generator=generator)
    weight = nn.Parameter(start.clone())
    optimizer = peer(weight)
    weight.grad = gradient
    optimizer.step()
    basis = optimizer.state[weight]["projector"].ortho_matrix
    model, stepper = one_matrix(start, rank, method, **options)
    (matrix,) = stepper.matrices.values()
    projector = Projector(**{matrix.side: (basis.T if matrix.side == "right" else basis).contiguous()})
    matrix.projector, matrix.next_refresh = projector, NEVER
    mine = model["q_proj"].weight
    mine.grad = gradient
    stepper.step()
    for _ in range(3):
        stepper.step()
        optimizer.step()
    facts = {"updates differ by": agreement(mine - start, weight - start, TOLERANCE)}
    return Pair(optimizer, stepper, start, gradient, projector, facts)


def one_matrix(weight: Tensor, rank: int, method: str, **options: Any) -> tuple[Any, ProjectedStepper]:
    """Return a model of one target with this weight, and its stepper; only its first update refreshes."""
    out, inputs = weight.shape
    layer = nn.utils.skip_init(nn.Linear, inputs, out, bias=False)
    layer.weight.data.copy_(weight)
    model = nn.ModuleDict({"q_proj": layer})
    chosen = {"rank": rank, "period": NEVER, "scale": SCALE, "targets": ["q_proj"], **options}
    configured = build(method, chosen)
    configured.prepare(model, Context())
    stepper = configured.stepper(model, OptimConfig(lr=LR, eps=EPS))
    assert isinstance(stepper, ProjectedStepper)
    return model, stepper


def peer_optimizer(plain: Sequence[Tensor], projected: Sequence[Tensor], rank: int) -> Any:
    """Return their AdamW, with a refresh in the first step alone."""
    package = peer_package("galore_torch", "galore-torch")
    options = {"rank": rank, "update_proj_gap": NEVER, "scale": SCALE, "proj_type": "std"}
    groups = [{"params": plain}, {"params": projected, **options}]
    return package.GaLoreAdamW(groups, lr=LR, eps=EPS, no_deprecation_warning=True)


def _floor(peer: Callable[[], Any], weight: Tensor, gradient: Tensor, projector: Projector) -> str:
    """Return the time of the two products that every step needs, over the peer's: the lowest ratio."""
    weight = weight.clone()

    def products() -> None:
        projector.add_back(weight, projector.project(gradient), 1e-9)

    shares = []
    for _ in range(5):
        marks = [time.perf_counter()]
        for work in (products, peer):
            work()
            marks.append(time.perf_counter())
        shares.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    return f"{quartiles(shares)[1]:.2f}"


# ------------------------------------------------------------------------------------------- a refresh
@dataclass(frozen=True)
class Scene:
    """A gradient, the subspace that the peer finds in it, an older gradient and its subspace."""

    gradient: Tensor
    exact: Projector
    older: Tensor
    old: Projector
    peer: Callable[[], Any]


def refresh(how: Finder, warm: bool, out: int, inputs: int, rank: int) -> Duel:
    """Find a new subspace by a finder of ours, against the singular value decomposition of the peer."""
    scene = setting(out, inputs, rank)
    side = side_of((out, inputs), "std")
    old = scene.old if warm else None

    def ours() -> Projector:
        return find_projector(scene.gradient, side, rank, how, random_stream(0, "peer", 0, CPU), old)[0]

    found = ours()
    facts = {"captured energy / exact": f"{share_captured(found, scene):.5f}"}
    if warm:
        facts["overlap of the old subspace"] = f"{scene.exact.overlap(scene.old):.2f}"
    return Duel(ours, scene.peer, facts)


@lru_cache(maxsize=1)
def setting(out: int, inputs: int, rank: int) -> Scene:
    """Return what the refreshes of one shape share; cached, since the peer takes a minute at the largest."""
    projector = peer_package("galore_torch.galore_projector", "galore-torch").GaLoreProjector(rank)
    side = side_of((out, inputs), "std")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(long, min(out, inputs), generator=generator) for long in (out, inputs))
    gradient = power_law(left, right, generator)
    peer = partial(projector.get_orthogonal_matrix, gradient, rank, side)
    basis = peer()
    exact = Projector(**{side: basis.T if side == "right" else basis})
    for factor in (left, right):
        factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.1)
    older = power_law(left, right, generator)
    old = find_projector(older, side, rank, "randomized", random_stream(0, "peer", 1, CPU))[0]
    return Scene(gradient, exact, older, old, peer)


def power_law(left: Tensor, right: Tensor, generator: torch.Generator) -> Tensor:
    """Return the product of two factors, column i over i, plus white noise of a tenth of its norm."""
    product = left / torch.arange(1, left.shape[1] + 1) @ right.T
    noise = torch.randn(product.shape, generator=generator)
    return product.add_(noise, alpha=float(0.1 * product.norm() / noise.norm()))


def share_captured(found: Projector, scene: Scene) -> float:
    """Return the squared norm of the gradient within a subspace, over that within the peer's."""
    kept, best = (float(p.project(scene.gradient).double().square().sum()) for p in (found, scene.exact))
    return kept / best
