"""How much rank the weights of a model can spare, by the rule of WeLore.

Source: Jaiswal et al. 2024, "WeLore" (arXiv 2407.11239), Algorithm 1. For every matrix the singular values
are scaled to [0, 1] by their minimum and maximum; at a threshold `tau` the rank that can go is the number of
scaled values below it. A matrix counts only if that is more than half of its rank. The effective rank
reduction (err) is the sum of the spared ranks of the counted matrices over the sum of all full ranks.
"""

from collections import defaultdict

import torch
from transformers import PreTrainedModel

# Half, minus rounding: the constant of the authors' code.
_COUNTED_ABOVE = 0.4999
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def kept_ranks(model: PreTrainedModel, err: float) -> dict[str, list[int]]:
    """Return for each kind of matrix the rank that every layer keeps when the reduction is `err` (0 to 1).

    The threshold is found by bisection. A matrix that does not count keeps its full rank.
    """
    scaled = {
        name: _scaled_singular_values(weight) for name, weight in model.named_parameters() if _kind(name)
    }
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _reduction(list(scaled.values()), middle) < err:
            low = middle
        else:
            high = middle
    ranks = defaultdict(list)
    for name, values in scaled.items():
        ranks[_kind(name)].append(len(values) - _spared(values, high))
    return dict(ranks)


def _kind(name: str) -> str:
    return next((kind for kind in KINDS if f".{kind}." in name), "")


@torch.no_grad()
def _scaled_singular_values(weight: torch.Tensor) -> torch.Tensor:
    values = torch.linalg.svdvals(weight.double())
    return (values - values.min()) / (values.max() - values.min())


def _spared(values: torch.Tensor, tau: float) -> int:
    spared = int((values < tau).sum())
    return spared if spared / len(values) > _COUNTED_ABOVE else 0


def _reduction(matrices: list[torch.Tensor], tau: float) -> float:
    return sum(_spared(values, tau) for values in matrices) / sum(len(values) for values in matrices)
