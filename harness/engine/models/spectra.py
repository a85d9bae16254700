"""Random weights with the singular values of `harness.spectrum`, for methods that look at them."""

from __future__ import annotations

import torch
from torch import nn

from harness.spectrum import like_llama


@torch.no_grad()
def apply_spectrum(model: nn.Module, seed: int) -> None:
    """Replace every linear weight by U diag(s) V^T, U and V random, of the norm that it had.

    The output head keeps its weights, like the embedding. Works where each weight is, in float32.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    }
    generators: dict[torch.device, torch.Generator] = {}
    for name, layer in layers.items():
        weight, device = layer.weight, layer.weight.device
        size = min(weight.shape)
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        left, right = (
            torch.linalg.qr(torch.randn(long, size, generator=generator, device=device)).Q
            for long in weight.shape
        )
        values = torch.tensor(like_llama(size, name, layers), device=device)
        values *= weight.float().norm() / values.norm()
        weight.copy_((left * values) @ right.T)
