"""Send calibration text through a model block by block, so that one block's statistics exist at a time.

Between two blocks the hidden states of the whole text are kept, on the device or spilled to the host:
sequences x length x width numbers in the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Batch
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.sampling.schedule import layers_of

#: Where hidden states wait for the next block.
Place = Literal["device", "host"]


@dataclass
class Hidden:
    """Hidden states (sequences, length, width) of a batch between two blocks."""

    states: Tensor
    beside: Mapping[str, Any]
    """What every block takes beside them."""

    counted: Tensor
    """Which tokens (sequences, length) are no padding."""

    ends: frozenset[int] = frozenset()
    """After how many of the sequences a group of them ends."""


@torch.no_grad()
def walk(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    batches: Iterable[Batch],
    second_moments: bool = True,
    sequential: bool = False,
    place: Place = "device",
    groups: int = 1,
) -> Generator[dict[str, InputStatistics], None, None]:
    """Yield the statistics of the inputs of linear layers by name, block after block.

    Layers that read the same tensor share one object. Change the layers of a block when its statistics have
    come: `sequential` then sends the text through the changed block; else every block sees what the unchanged
    model makes of the text. The model computes without dropout. Layers outside of blocks are left out.
    The sequences are cut into `groups` of consecutive ones, as equally long as their number allows; each is
    closed in the statistics. UserError for more groups than sequences.
    """
    trains = model.training
    model.eval()
    try:
        blocks = layers_of(model)
        waiting = list(_entering(model, blocks[0], batches, place))
        if groups > 1:
            _mark_groups(waiting, groups)
        for block in blocks:
            inside = {id(module) for module in block.modules()}
            watched = {name: layer for name, layer in layers.items() if id(layer) in inside}
            found: dict[str, InputStatistics] = {}
            for hidden in waiting:
                with _watching(watched, found, second_moments, hidden):
                    after = _through(block, hidden, place)
                if not sequential:
                    hidden.states = after
            yield found
            if sequential:
                for hidden in waiting:
                    hidden.states = _through(block, hidden, place)
    finally:
        model.train(trains)


def walk_twice(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    batches: Callable[[], Iterable[Batch]],
    place: Place = "device",
) -> Iterator[tuple[dict[str, InputStatistics], dict[str, InputStatistics]]]:
    """Yield second moments of the inputs of layers in the unmodified model and behind the changed blocks.

    Both are of the same block before it is changed, and both exist together. This keeps a second set of
    hidden states and sends the text through each block three times: unmodified inputs through the unmodified
    block, then inputs from the changed model through the block before and after its change.
    """
    trains = model.training
    walks = [walk(model, layers, batches(), True, sequential, place) for sequential in (False, True)]
    try:
        yield from zip(*walks, strict=False)  # the text needs not pass the last block once more
    finally:
        for each in walks:
            each.close()
        model.train(trains)


def _through(block: nn.Module, hidden: Hidden, place: Place) -> Tensor:
    """Return what a block makes of hidden states."""
    device = next(block.parameters()).device
    result = block(hidden.states.to(device), **hidden.beside)
    states: Tensor = result[0] if isinstance(result, tuple) else result
    return states.to("cpu" if place == "host" else device)


@contextmanager
def _watching(
    layers: Mapping[str, nn.Linear],
    found: dict[str, InputStatistics],
    second_moments: bool,
    hidden: Hidden,
) -> Iterator[None]:
    """Add the inputs of one pass to the statistics of each layer, once for layers that share them."""
    seen: list[tuple[Tensor, InputStatistics]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tensor = inputs[0]
            known = next((sums for other, sums in seen if other is tensor), None)
            if known is not None:
                found.setdefault(name, known)
                return
            sums = found.setdefault(name, InputStatistics(tensor.shape[-1], second_moments))
            _add(sums, tensor, hidden)
            seen.append((tensor, sums))

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(sums: InputStatistics, inputs: Tensor, hidden: Hidden) -> None:
    """Add the inputs of all tokens, and close the groups of sequences that end among them."""
    inputs, first = inputs.reshape(*hidden.counted.shape, -1), 0
    for end in sorted({*hidden.ends, len(inputs)}):
        sums.add(inputs[first:end][hidden.counted[first:end]])
        if end in hidden.ends:
            sums.close()
        first = end


def _mark_groups(waiting: list[Hidden], groups: int) -> None:
    """Note in batches where groups of sequences end."""
    sequences = sum(len(hidden.states) for hidden in waiting)
    if groups > sequences:
        raise UserError(f"{groups} groups of sequences cannot be made of {sequences}; ask for fewer groups")
    ends = [sequences * group // groups for group in range(1, groups + 1)]
    first = 0
    for hidden in waiting:
        last = first + len(hidden.states)
        hidden.ends = frozenset(end - first for end in ends if first < end <= last)
        first = last


class _ReachedError(Exception):
    """The first block was reached."""


def _entering(model: Any, first: nn.Module, batches: Iterable[Batch], place: Place) -> Iterator[Hidden]:
    """Yield what the first block of a model is given for each batch."""
    caught: list[Hidden] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...], beside: dict[str, Any]) -> None:
        states = inputs[0] if inputs else beside.pop("hidden_states")
        caught.append(Hidden(states.to("cpu") if place == "host" else states, beside, torch.empty(0)))
        raise _ReachedError

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    decoder = getattr(model, "base_model", model)
    try:
        for ids, labels in batches:
            try:
                decoder(input_ids=ids, use_cache=False)
            except _ReachedError:
                hidden = caught.pop()
                hidden.counted = labels >= 0
                yield hidden
    finally:
        hook.remove()
