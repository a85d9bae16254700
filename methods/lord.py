"""LORD: principal components of the outputs of each layer, at fixed shares by kind of layer."""

from __future__ import annotations

from typing import ClassVar

from methods.parts.allocation.catalogue import AnyAllocator
from methods.parts.allocation.per_type import PerType
from methods.parts.factors.compression import Compression, CompressionConfig, Positive
from methods.parts.factors.factorisers import AnyFactoriser, Pca


class LordConfig(CompressionConfig):
    """Options of LORD: those of all compressions, with the settings that are published for LLaMA-2."""

    allocator: AnyAllocator = PerType(preset="lord")
    """How much of each matrix is kept: v_proj whole, and at 20 % of all linears 70 % of q and k and 80 % of
    the others (55 % and 70 % at 30 %); other reductions and models keep these proportions."""

    factoriser: AnyFactoriser = Pca()
    """How a matrix is factored: by the principal components of its outputs, with a bias that keeps their
    mean."""

    multiple: Positive = 8
    """Every rank is a multiple of this number."""


class Lord(Compression):
    """Project the outputs of each layer on their principal components, in one shot."""

    Config: ClassVar[type[CompressionConfig]] = LordConfig
    config: LordConfig
    name: ClassVar[str] = "lord"
    source = (
        "Kaushal et al., LORD, 2023, arXiv 2309.14021, whose abstract alone was at hand: there is no code. "
        "Equations, shares and centred features with a bias are those of its port to LLaMA-2 by Ji et al., "
        "Bolaco, 2024, arXiv 2405.10616, equations 2-4 and appendix C, and tests of its own are of code "
        "models only. Departs from the port's code, which loses the covariance of the text, in keeping it."
    )
