"""What becomes of Adam's moments when the coordinates of a projected gradient change.

With R the map of old to new coordinates (M -> R M from the left, here also from the right or both):

* `keep`: as they are, in coordinates that no longer exist (GaLore's code).
* `reset`: zero, with the step count of the bias correction gone on.
* `square`: M <- R M, V <- (R o R) V. Never negative; exact for flips of sign and for permutations.
* `ldadam`: M <- R M, V <- |(R o R)(V - M^2) + (R M)^2|, both moments without their bias: variance and
  mean are mapped apart (in the style of Robert et al., LDAdam, 2024, arXiv 2410.16103).
* `paper`: M <- R M, V <- R V as printed for AdaRankGrad; V may turn negative and is clamped at 0.

`keep` needs equal ranks and acts as `reset` where they differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from methods.parts.optim.adam import Adam, State
from methods.parts.projection.projector import Projector

Rule = Literal["keep", "reset", "square", "ldadam", "paper"]


def carried(adam: Adam, state: State, rule: Rule, old: Projector, new: Projector, gradient: Tensor) -> State:
    """The state for the coordinates of `new`, from that for the coordinates of `old`."""
    left, right = new.changes_from(old)
    if rule == "keep" and old.rank == new.rank:
        return state
    like = coordinates_like(new, gradient)
    if rule in ("keep", "reset"):
        nothing = torch.zeros_like(like)
        return adam.replaced(state, nothing, nothing, like)
    first, second = adam.moments(state)
    if rule == "ldadam":
        unbias = [1 - beta ** int(state["step"]) for beta in adam.optim.betas]
        mean, square = first / unbias[0], second / unbias[1]
        moved = mapped(mean, left, right)
        spread = mapped(square - mean.square(), squared(left), squared(right))
        new_second = (spread + moved.square()).abs() * unbias[1]
    elif rule == "square":
        new_second = mapped(second, squared(left), squared(right))
    else:
        new_second = mapped(second, left, right).clamp(min=0)
    return adam.replaced(state, mapped(first, left, right), new_second, like)


def coordinates_like(projector: Projector, gradient: Tensor) -> Tensor:
    """An empty tensor of the shape and dtype of the coordinates of a gradient."""
    rows = gradient.shape[0] if projector.left is None else projector.rank
    columns = gradient.shape[1] if projector.right is None else projector.rank
    return gradient.new_empty((rows, columns), dtype=projector.dtype)


def mapped(moment: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left @ moment @ right, where None stands for the identity."""
    if left is not None:
        moment = left.to(moment.dtype) @ moment
    return moment if right is None else moment @ right.to(moment.dtype)


def squared(change: Tensor | None) -> Tensor | None:
    """Elementwise squares."""
    return None if change is None else change.square()
