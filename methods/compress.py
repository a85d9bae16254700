"""Compression as a pair: an allocator says how much of each matrix is kept, a factoriser how."""

from __future__ import annotations

from methods.parts.factors.compression import Compression


class Compress(Compression):
    """Any allocator with any factoriser, at one measured ratio."""

    source = (
        "The parts of WeLore (ICML 2025, arXiv 2407.11239), SVD-LLM (2403.07378), ASVD (2312.05821), LoRAP "
        "(2404.09695), LORD (2309.14021), Bolaco (2405.10616) and OWL (2310.05175), each as the option says. "
        "Departs from their codes in eigenvectors instead of inverses, which gives the same weights."
    )
