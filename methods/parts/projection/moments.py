"""Adam's moments at a refresh, when the coordinates of a projected gradient change.

With R the map of old to new coordinates (M -> R M from the left; likewise from the right or both):

* `keep`: unchanged, in coordinates that no longer exist (GaLore's code).
* `reset`: zero, while the step count of the bias correction continues.
* `square`: M <- R M, V <- (R o R) V. Never negative; exact for flips of sign and for permutations.
* `ldadam`: M <- R M, V <- |(R o R)(V - M^2) + (R M)^2|, both moments without their bias: variance and
  mean are mapped separately (in the style of Robert et al., LDAdam, 2024, arXiv 2410.16103).
* `paper`: M <- R M, V <- R V as printed for AdaRankGrad; V may turn negative and is clamped at 0.

`keep` needs equal ranks and acts as `reset` where they differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from methods.parts.optim.adamw import Adam, State
from methods.parts.projection.projector import Projector

Rule = Literal["keep", "reset", "square", "ldadam", "paper"]


def carry_over(
    adam: Adam, state: State, rule: Rule, old: Projector, new: Projector, gradient: Tensor
) -> State:
    """Return the state for the coordinates of `new`, from that for the coordinates of `old`.

    The gradient (out, in) is read for its shape alone.
    """
    if rule == "keep" and old.rank == new.rank:
        return state
    like = new.empty(gradient)
    if rule in ("keep", "reset"):
        nothing = torch.zeros_like(like)
        return adam.with_moments(state, nothing, nothing, like)
    left, right = new.changes_from(old)
    squares = [None if change is None else change.square() for change in (left, right)]
    first, second = adam.moments(state)
    if rule == "ldadam":
        unbias = [1 - beta ** int(state["step"]) for beta in adam.optim.betas]
        mean, square = first / unbias[0], second / unbias[1]
        spread = mapped(square - mean.square(), *squares)
        new_second = (spread + mapped(mean, left, right).square()).abs() * unbias[1]
    elif rule == "square":
        new_second = mapped(second, *squares)
    else:
        new_second = mapped(second, left, right).clamp(min=0)
    return adam.with_moments(state, mapped(first, left, right), new_second, like)


def mapped(moment: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Return left @ moment @ right, where None stands for the identity."""
    if left is not None:
        moment = left.to(moment.dtype) @ moment
    return moment if right is None else moment @ right.to(moment.dtype)
