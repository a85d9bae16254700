"""Try rank maps on a model: one decomposition of every layer serves all of them, and the model stays.

The host holds the directions of each layer in the dtype of its weight but at least float32, up to the rank
at which factors cost as much as the layer. For all seven linears of LLaMA-2 7B that is 14.3 GB:
32 x (4 x 2047 x 4096 + 2 x 2985 x 11008 + 2985 x 4096) numbers of 4 bytes. On the device, the factors of one
rank map stand beside the weights that they replace for the time of its evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.factored import factor
from harness.method import Batch
from methods.parts.allocation.allocator import Problem
from methods.parts.factors.kernel import Decomposition

#: Tokens whose distributions over the vocabulary are compared at a time.
CHUNK = 512


@dataclass(frozen=True)
class Scores:
    """How well a model predicts windows of text: sums over the tokens of each, (windows,) in float64."""

    tokens: Tensor
    """Tokens that are predicted."""

    losses: Tensor
    """Sums of -log p."""

    divergences: Tensor | None = None
    """Sums of KL(compressed, uncompressed) over the same predictions; None where it was not asked for."""

    @property
    def perplexity(self) -> float:
        """Perplexity over all tokens; infinite where a loss is not finite."""
        return float(_finite(self.losses.sum() / self.tokens.sum()).exp())

    @property
    def perplexities(self) -> Tensor:
        """Perplexity of each window (windows,)."""
        return _finite(self.losses / self.tokens).exp()

    @property
    def divergence(self) -> float:
        """Mean KL(compressed, uncompressed) of a token in nats; infinite where one is not finite."""
        assert self.divergences is not None
        return float(_finite(self.divergences.sum() / self.tokens.sum()))


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=torch.inf, posinf=torch.inf)


class Trial:
    """A model whose layers can be factored at any ranks, for as long as an evaluation takes."""

    def __init__(self, problem: Problem, names: Collection[str] | None = None) -> None:
        """Decompose the targets, or those of these names, from one pass over the calibration text."""
        self.model = problem.model
        chosen = list(problem.layers if names is None else names)
        self.layers = {name: problem.layers[name] for name in chosen}
        self.decompositions = {name: _held(found) for name, found in problem.decompositions(chosen)}

    @torch.no_grad()
    def evaluate(
        self, ranks: Mapping[str, int], batches: Iterable[Batch], divergence: bool = False
    ) -> Scores:
        """Return how well the model predicts windows of text when it is factored at these ranks.

        A token counts where it is no padding and has one before it. `divergence` compares each prediction
        with that of the uncompressed model, whose logits are computed anew batch by batch and never kept.
        Layers without a rank are dense. ValueError for a rank beyond what was decomposed.
        """
        made = {name: self._factors(name, rank) for name, rank in ranks.items()}
        trains = {module: module.training for module in self.model.modules()}
        self.model.eval()
        found: list[tuple[Tensor, ...]] = []
        try:
            for ids, labels in batches:
                before = self._logits(ids) if divergence else None
                with self._installed(made):
                    found.append(_summed(self._logits(ids), labels, before))
        finally:
            for module, mode in trains.items():
                module.training = mode
        return Scores(*(torch.cat(each) for each in zip(*found, strict=True)))

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[:, :-1]

    @torch.no_grad()
    def _factors(self, name: str, rank: int) -> nn.Module:
        """Return the factors of a layer at a rank, on its device and in its dtype."""
        held, layer = self.decompositions[name], self.layers[name]
        if not 0 < rank <= held.directions.shape[1]:
            raise ValueError(f"rank {rank} of {name}: decomposed up to {held.directions.shape[1]}")
        device = layer.weight.device
        sliced = replace(
            held,
            directions=held.directions[:, :rank].to(device),
            mean=None if held.mean is None else held.mean.to(device),
        )
        found = sliced.factors(rank)
        return factor(layer, found.up, found.down, found.offset)

    @contextmanager
    def _installed(self, made: Mapping[str, nn.Module]) -> Iterator[None]:
        """Put modules in the places of layers, and the layers back."""
        try:
            for name, module in made.items():
                self.model.set_submodule(name, module)
            yield
        finally:
            for name in made:
                self.model.set_submodule(name, self.layers[name])


def _held(found: Decomposition) -> Decomposition:
    """Return a decomposition that is kept on the host, in at least float32."""
    dtype = torch.promote_types(found.weight.dtype, torch.float32)
    mean = None if found.mean is None else found.mean.to("cpu", dtype)
    return replace(found, directions=found.directions.to("cpu", dtype), mean=mean)


def _summed(logits: Tensor, labels: Tensor, before: Tensor | None) -> tuple[Tensor, ...]:
    """Return tokens, losses and, with logits of the uncompressed model, divergences of each row, float64.

    Logits are (rows, length - 1, vocabulary), labels (rows, length) with -100 in place of padding.
    """
    rows = []
    for number, following in enumerate(labels[:, 1:]):
        counted = following >= 0
        sums = torch.zeros(2, dtype=torch.float64)
        for part in counted.nonzero().squeeze(1).split(CHUNK):
            ours = _log_probabilities(logits[number, part])
            sums[0] -= ours.gather(1, following[part, None]).double().sum().cpu()
            if before is not None:
                difference = ours - _log_probabilities(before[number, part])
                sums[1] += (ours.exp() * difference).double().sum().cpu()
        rows.append((counted.sum().double().cpu(), *sums[: 1 if before is None else 2]))
    return tuple(torch.stack(each) for each in zip(*rows, strict=True))


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
