"""WeLore: one threshold on normalised singular values decides which matrices are low-rank, and to which rank.

Singular values are scaled to [0, 1] per matrix. Those below a threshold tau, the same for the whole
model, are pruned. A matrix that loses more than `min_ratio` of its ranks is a low-rank component
(LRC): it is stored as two factors, and these train. The other matrices stay as they are, frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Annotated, ClassVar

from pydantic import Field

from harness import spectrum
from harness.method import Caps, Context
from methods.parts.allocation.threshold import Spectra, around, kept_ranks, normalised
from methods.parts.factors.method import LowRankCompression, LowRankCompressionConfig
from methods.parts.factors.svd_cache import SingularValues
from methods.parts.targets import Shapes


class WeLoreConfig(LowRankCompressionConfig):
    """Hyperparameters of WeLore beside `err`, `train` and `targets`."""

    tau: Annotated[float, Field(gt=0)] | None = None
    """Use this threshold (the paper's code has tables of them); `err` only labels the run."""

    min_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.4999
    """A matrix is an LRC if it loses more than this share of its ranks. 0 is the compression mode of
    the paper: every matrix that loses a rank is factored, and `err` means something else."""

    factor_below_break_even: bool = False
    """An LRC must also be smaller as two factors: rank (out + in) < out in. What fails stays dense and
    whole, and counts as no LRC; without this, factors may be larger than the matrix they replace."""


class WeLore(LowRankCompression):
    """WeLore-COMP (`prepare`) and WeLore-PEFT (`train: lrc`)."""

    Config = WeLoreConfig
    config: WeLoreConfig
    source = (
        "Jaiswal et al., From Low Rank Gradient Subspace Stabilization to Low-Rank Weights, ICML 2025, arXiv "
        "2407.11239; the rules of their code. Departs from it in how tau is found, exactly by bisection: the "
        "paper searches in steps of 0.005, and the code has a table for two models."
    )

    approximations: ClassVar[Mapping[str, str]] = {
        "published": "spectra shaped so that the paper's thresholds and parameter ratios nearly come out",
        "power-law": "the i-th singular value of every matrix is 1 / i",
    }

    @property
    def caps(self) -> Caps:
        """Return that the values of trained weights decide the ranks."""
        return replace(super().caps, value_dependent=True)

    def choose_ranks(
        self, shapes: Shapes, values: Callable[[], SingularValues], context: Context
    ) -> dict[str, int]:
        """Find tau unless it is given; return the rank of every LRC."""
        if context.simulated:
            published = context.simulated.approximation != "power-law"
            assume = spectrum.like_llama if published else spectrum.power_law
            spectra = {name: normalised(assume(min(shape), name, shapes)) for name, shape in shapes.items()}
        else:
            found = values()
            context.add_spectra({name: part.tolist() for name, part in found.items()})
            spectra = {name: normalised(part) for name, part in found.items()}
        tau = self.config.tau or self.find_tau(shapes, spectra)
        context.facts["tau"] = tau
        return self.components(shapes, spectra, tau)

    def components(self, shapes: Shapes, spectra: Spectra, tau: float) -> dict[str, int]:
        """Return the rank of each LRC at a threshold. As tau grows LRCs only join and ranks only fall."""
        kept = kept_ranks(spectra, tau)
        return {name: rank for name, rank in kept.items() if self._is_component(rank, shapes[name])}

    def _is_component(self, rank: int, shape: tuple[int, ...]) -> bool:
        low = (min(shape) - rank) / min(shape) > self.config.min_ratio
        return low and (rank * sum(shape) < prod(shape) or not self.config.factor_below_break_even)

    def find_tau(self, shapes: Shapes, spectra: Spectra) -> float:
        """Return the threshold whose reduction is nearest to `err`; the smaller of two that are equally near.

        The reduction is a step function of tau that never falls. With `min_ratio` 0 the result is the
        err-quantile of the pooled values; else ERR misses by at most half of what one matrix adds.
        """
        total = sum(map(min, shapes.values()))

        def reduction(tau: float) -> float:
            kept = self.components(shapes, spectra, tau)
            return sum(min(shapes[name]) - rank for name, rank in kept.items()) / total

        near = around(spectra, reduction, self.config.err)
        return min(near, key=lambda tau: (abs(reduction(tau) - self.config.err), tau))
