"""Sums over the inputs of a linear layer, from which every weighting of its errors follows.

Four such sums serve the seven linears of a block: q, k and v read one input, gate and up another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass
class InputStatistics:
    """Sums over tokens of an input of width n, added up batch by batch in any order.

    `second_moments` says whether products of features are summed too, n x n numbers; without them a layer's
    errors can be weighted feature by feature alone.
    """

    width: int
    second_moments: bool = True
    tokens: int = 0
    #: Sum of x and of |x| (width,), in float64.
    total: Tensor = field(init=False)
    absolute: Tensor = field(init=False)
    #: Sum of x x^T (width, width), or of its diagonal (width,), in float32 or in the dtype of a wider input.
    products: Tensor = field(init=False)
    #: Tokens and sum of x (width,) of each group that is closed.
    closed: list[tuple[int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = self.absolute = self.products = torch.empty(0)

    @torch.no_grad()
    def add(self, inputs: Tensor) -> None:
        """Add tokens (tokens, width)."""
        exact = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        if not self.tokens:
            shape = (self.width, self.width) if self.second_moments else (self.width,)
            self.products = exact.new_zeros(shape)
            self.total, self.absolute = (exact.new_zeros(self.width, dtype=torch.float64) for _ in range(2))
        self.tokens += len(exact)
        self.total += exact.sum(0, dtype=torch.float64)
        self.absolute += exact.abs().sum(0, dtype=torch.float64)
        if self.second_moments:
            self.products.addmm_(exact.T, exact)
        else:
            self.products += exact.square().sum(0)

    def close(self) -> None:
        """Make the tokens since the last closing a group of their own; without any it does nothing."""
        if tokens := self.tokens - sum(tokens for tokens, _ in self.closed):
            self.closed.append((tokens, self.total - sum(total for _, total in self.closed)))

    def merge(self, other: Self) -> None:
        """Add what was summed elsewhere, as over another shard of the text.

        Closed groups stay apart, and what neither has closed becomes one group.
        """
        if not other.tokens:
            return
        if not self.tokens:
            self.total, self.absolute, self.products = other.total, other.absolute, other.products
        else:
            self.total, self.absolute = self.total + other.total, self.absolute + other.absolute
            self.products = self.products + other.products
        self.tokens += other.tokens
        self.closed = [*self.closed, *other.closed]

    @property
    def mean(self) -> Tensor:
        """Mean input (width,), float64."""
        return self.total / self.tokens

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean of |x| (width,), float64."""
        return self.absolute / self.tokens

    @property
    def mean_square(self) -> Tensor:
        """Mean of x^2 (width,), float64."""
        squares = self.products.diagonal() if self.second_moments else self.products
        return squares.double() / self.tokens

    def second_moment(self) -> Tensor:
        """Return the mean of x x^T (width, width), float64."""
        return self.products.double() / self.tokens

    def covariance(self) -> Tensor:
        """Return the mean of (x - mean) (x - mean)^T (width, width), float64."""
        return self.second_moment().sub_(torch.outer(self.mean, self.mean))

    def pooled_covariance(self) -> Tensor:
        """Return the covariance (width, width) about the mean of each group, averaged over tokens, float64.

        That is the plain average over groups where they are equally long. What is not closed is a group, too.
        The tokens' covariance is this plus the covariance of the groups' means, which is left out.
        """
        rest = self.tokens - sum(tokens for tokens, _ in self.closed)
        groups = list(self.closed)
        if rest:
            groups.append((rest, self.total - sum(total for _, total in self.closed)))
        found = self.second_moment()
        for tokens, total in groups:
            found.sub_(torch.outer(total, total / tokens), alpha=1 / self.tokens)
        return found
