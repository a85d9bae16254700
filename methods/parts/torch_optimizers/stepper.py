"""Train with any optimizer of torch: its groups, its rate, its states, and AdamW beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config import OptimConfig
from harness.errors import MethodError, UnsupportedError, one_line
from harness.method import Context, StepInfo
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.targets import random_stream, seeded
from methods.parts.torch_optimizers.averages import Mode, follows_mode
from methods.parts.torch_optimizers.states import named_tensors, restore, saved

#: Return an optimizer of named parameters at a rate; the names of target matrices among them decide groups.
Make = Callable[[Mapping[str, nn.Parameter], float], Optimizer]


class OptimizerStepper(AdamWStepper):
    """Update the parameters that `others` does not name with the optimizer that `make` returns.

    `others` get AdamW, at `rest_rate` times the rate. With `per_layer` each parameter has an optimizer of its
    own. One that `draws` from the global random numbers finds them seeded by the context, the update and, per
    layer, the parameter, and leaves them as they were. One with `train()` and `eval()` follows the model's
    mode. `cannot_resume` is why its state cannot be saved, "" where it can.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        make: Make,
        others: Collection[str] = (),
        *,
        rest_rate: float = 1.0,
        draws: bool = False,
        cannot_resume: str = "",
        context: Context,
    ) -> None:
        super().__init__(model, optim)
        own = {name: p for name, p in self.parameters.items() if name not in others}
        self.own, self.rest_rate, self.draws, self.cannot_resume = own, rest_rate, draws, cannot_resume
        self.seed, self.simulated, self.updates = context.seed, context.simulated is not None, 0
        self.device = next(iter(own.values())).device
        self.optimizers: dict[str, Optimizer] = {}
        parts = {name: {name: p} for name, p in own.items()} if optim.per_layer else {"": own}
        for key, part in parts.items():
            with self._random_numbers(key):
                self.optimizers[key] = make(part, optim.lr)
        if follows_mode(next(iter(self.optimizers.values()))):
            Mode(self.optimizers.values(), self).watch(model)

    def set_lr(self, lr: float) -> None:
        """Set the rate of the next update, of every group and of AdamW."""
        super().set_lr(lr * self.rest_rate)
        for optimizer in self.optimizers.values():
            set_rate(optimizer, lr)

    def step(self) -> StepInfo:
        """Update what has not been updated inside backward."""
        info = super().step()
        self.updates += 1
        return info

    def update(self, names: Sequence[str], **overrides: float) -> None:
        """Update the named parameters from their gradients: all that have one, or one inside backward."""
        if rest := [name for name in names if name not in self.own]:
            super().update(rest, **overrides)
        mine = [name for name in names if name in self.own]
        for key in mine if self.optim.per_layer else [""] if mine else []:
            with self._random_numbers(key):
                self._step(self.optimizers[key])

    def _step(self, optimizer: Optimizer) -> None:
        """Let one optimizer update its parameters; compiled only on a GPU, since a CPU's memory is metered by
        operation, which compiled code has none of."""
        on_gpu = self.device.type == "cuda" and not self.simulated
        try:
            with nullcontext() if on_gpu else torch.compiler.set_stance("force_eager"):
                optimizer.step()
        except Exception as error:
            if not self.simulated:
                raise
            said = f"{type(error).__name__}: {one_line(error)}"
            name = type(optimizer).__name__
            raise MethodError(
                f"{name} does not run on tensors without values, so it has no forecast: {said}"
            ) from error

    def _random_numbers(self, key: str) -> AbstractContextManager[None]:
        if not self.draws:
            return nullcontext()
        seed = random_stream(self.seed, key, self.updates, torch.device("cpu")).initial_seed()
        return seeded(seed, self.device)

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield `<parameter>.<key>` for the states of a parameter, `optimizer.<attribute>` for others."""
        yield from super().state_tensors()
        names = {id(parameter): name for name, parameter in self.own.items()}
        seen = set(names)
        for key, optimizer in self.optimizers.items():
            for parameter, state in optimizer.state.items():
                yield from named_tensors(names.get(id(parameter), "optimizer"), state, seen)
            rest = {name: value for name, value in vars(optimizer).items() if name != "state"}
            yield from named_tensors(f"{key}.optimizer".removeprefix("."), rest, seen)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all optimizers and of AdamW; UnsupportedError where they cannot be saved."""
        if self.cannot_resume:
            raise UnsupportedError(self.cannot_resume)
        states = {key: saved(optimizer, self.own) for key, optimizer in self.optimizers.items()}
        return {"optimizers": states, "rest": super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore copies of a saved state; ValueError when other parameters were trained."""
        if unknown := sorted(state["optimizers"].keys() ^ self.optimizers.keys()):
            raise ValueError(f"the state was saved with another train.per_layer: {', '.join(unknown)}")
        for key, optimizer in self.optimizers.items():
            restore(optimizer, state["optimizers"][key], self.own)
        super().load_state_dict(state["rest"])
        self.updates = state["updates"]


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of every group; one in a tensor stays in it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
