"""Uniform rank reduction: every target matrix loses the same share of its ranks. WeLore's baseline."""

from __future__ import annotations

from collections.abc import Callable

from harness.method import Context
from methods.parts.factors.method import LowRankCompression
from methods.parts.factors.svd_cache import SingularValues
from methods.parts.targets import Shapes


class Uniform(LowRankCompression):
    """Factor every target matrix by truncated SVD; the ranks follow from the shapes alone."""

    source = (
        "The uniform baseline of Jaiswal et al., ICML 2025, arXiv 2407.11239, as in their code: of "
        "r0 = min(out, in) ranks int(err r0) go from every matrix, even where the factors are then larger."
    )

    def choose_ranks(
        self, shapes: Shapes, values: Callable[[], SingularValues], context: Context
    ) -> dict[str, int]:
        """Return r0 - int(err r0) of r0 ranks for every matrix, which is at least 1 because err < 1."""
        return {name: min(shape) - int(self.config.err * min(shape)) for name, shape in shapes.items()}
