"""All that a training must keep to go on in another process, to the bit.

The position in the text is not among it: it follows from the seed and the number of updates.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from harness.engine.measure.components import Components
from harness.engine.resume import tree
from harness.engine.resume.stored import Stored
from harness.engine.run import randomness
from harness.engine.run.train import MemoryWindow, Point, Trainer, TrainResult

#: Numbers by update, with the type of their array.
NUMBERS = {
    "loss": torch.float64,
    "lr": torch.float64,
    "grad_norm": torch.float64,
    "norm_steps": torch.int64,
    "timed_steps": torch.int64,
    "real_tokens": torch.int64,
}


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Return the state after the last update as nested dicts; tensors of the model are not copied."""
    trainer.read()
    return {
        "model": trainer.model.state_dict(),
        "stepper": trainer.stepper.state_dict(),
        "random": randomness.taken(trainer.device),
        "course": _course(trainer),
    }


def restore(trainer: Trainer, stored: Stored) -> dict[str, Any]:
    """Let a trainer that was prepared anew go on from a checkpoint, and return the state in it.

    UserError where the model is another.
    """
    _, own = tree.split({"model": trainer.model.state_dict()})
    state = tree.join(stored.plain, stored.tensors(trainer.device, own))
    trainer.model.load_state_dict(state["model"])
    trainer.stepper.load_state_dict(state["stepper"])
    _take_course(trainer, state["course"])
    trainer.first = stored.step
    randomness.put_back(trainer.device, state["random"])
    return dict(state)


def _course(trainer: Trainer) -> dict[str, Any]:
    result, memory = trainer.result, trainer.result.memory
    return {
        **{name: torch.tensor(getattr(result, name), dtype=kind) for name, kind in NUMBERS.items()},
        "step_s": torch.tensor(result.step_s, dtype=torch.float64),
        "refresh_step": torch.tensor(result.refresh_step, dtype=torch.bool),
        "ranks": result.ranks,
        "rank_moves": result.rank_moves,
        "refreshes": result.refreshes,
        "skipped": result.skipped,
        "memory": {**vars(memory), "parts": None if memory.parts is None else asdict(memory.parts)},
        "curve": [(point.step, point.trained_s, point.perplexity) for point in result.curve],
        "trained_s": trainer.stopwatch.seconds(),
        "refresh_next": trainer.refresh_next,
        "resumed": trainer.resumed,
        "extends": trainer.extends,
    }


def _take_course(trainer: Trainer, course: dict[str, Any]) -> None:
    lists = {name: course[name].tolist() for name in NUMBERS}
    memory, parts = course["memory"], course["memory"]["parts"]
    trainer.clock.take(course["step_s"].tolist(), course["refresh_step"].tolist())
    trainer.stopwatch.take(course["trained_s"])
    trainer.result = TrainResult(
        **lists,
        ranks=course["ranks"],
        rank_moves=course["rank_moves"],
        refreshes=course["refreshes"],
        skipped=course["skipped"],
        memory=MemoryWindow(**{**memory, "parts": None if parts is None else Components(**parts)}),
        step_s=trainer.clock.seconds(),
        refresh_step=trainer.clock.refreshed,
        curve=[Point(*point) for point in course["curve"]],
    )
    trainer.refresh_next, trainer.resumed = course["refresh_next"], course["resumed"]
    trainer.extends = course["extends"]
