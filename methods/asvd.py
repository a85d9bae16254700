"""ASVD: weights decomposed by the size of activations, at ranks by the harm that each matrix does alone."""

from __future__ import annotations

from methods.parts.allocation.catalogue import AnyAllocator
from methods.parts.allocation.strs import Strs
from methods.parts.factors.compression import Compression, CompressionConfig
from methods.parts.factors.factorisers import AnyFactoriser, Asvd


class ASVDConfig(CompressionConfig):
    """Options of ASVD: those of a compression, with the paper's as defaults."""

    allocator: AnyAllocator = Strs()
    """How much of each matrix is kept: `strs`, or another allocator."""

    factoriser: AnyFactoriser = Asvd()
    """How a matrix is factored: `asvd` with its `alpha`, or another factoriser."""


class ASVD(Compression):
    """Activation-aware SVD at ranks found by the sensitivity-based truncation rank search."""

    Config = ASVDConfig
    config: ASVDConfig
    name = "asvd"
    source = (
        "Yuan et al., ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language "
        "Models, 2023, arXiv 2312.05821, equations 6-7 and section 3.3. Departs from its code in "
        "decompositions that are exact instead of randomised, in a search that ends where it has converged "
        "and whose last step meets the budget, and in leaving the output head out of search and ratio."
    )
