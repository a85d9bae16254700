"""A training that is killed and goes on from its checkpoints ends with the bits of one that was not.

Every stack of methods is prepared anew after each kill, as in another process. A kill loses what is in memory
and leaves on the disk what was there, be it half a checkpoint.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.config import CheckpointConfig, Run
from harness.engine.contract.subject import seed_everything
from harness.engine.data.tokens import Tokens
from harness.engine.data.windows import PAD
from harness.engine.measure.peak import meter_for
from harness.engine.resume import stored
from harness.engine.resume.checkpoints import Checkpoints
from harness.engine.run.prepare import assemble
from harness.engine.run.state import restore, state_of
from harness.engine.run.train import METERED_STEPS, WARMUP_STEPS, Trainer
from harness.method import Context
from tests.contract.test_methods import CASES, UPDATES, Case
from tests.support.tiny import TinyText, tiny_llama

STEPS, EVERY, BATCH = 20, 3, 2
DEVICE = torch.device("cpu")
#: Stacks of each kind of state: moments and dropout, projectors, ranks that change, vectors in layers, drawn
#: layers, merges, masks, pairs of stages, packed states.
FAST = (
    "lora",
    "galore, randomized and staggered",
    "adarankgrad, 8 bits per layer",
    "qlora + velora",
    "lisa",
    "relora, states in part, 16 bits",
    "loraprune",
    "svdllm in stages",
    "full, 8 bits per layer",
)


class KilledError(Exception):
    """Stands for SIGKILL."""


def run_of(case: Case, grad_accum: int = 1) -> Run:
    train = {**case.optim.model_dump(), "steps": STEPS, "batch": BATCH, "grad_accum": grad_accum}
    methods = [{"name": name, "options": options} for name, options in case.stack]
    return Run.model_validate(
        {"method": methods, "train": train, "data": {"source": "random", "seq_len": 12}}
    )


def tokens(padded: bool = False) -> Tokens:
    windows = np.random.default_rng(7).integers(3, 64, (25, 12))
    if padded:
        windows[::2, 9:] = PAD
    return Tokens(windows, "random", "", real_tokens=1 if padded else None)


def trainer_of(case: Case, run: Run, text: Tokens) -> Trainer:
    """Prepare a stack anew, as each process does."""
    seed_everything(run.seed)
    trained = assemble(
        run,
        case.methods(),
        tiny_llama(),
        lambda key, method: Context(seed=1, updates=UPDATES, calibration=TinyText()),
        text.batches(BATCH, run.seed),
        meter_for(DEVICE),
    )
    assert trained.trainer is not None
    trained.trainer.padded = text.padded
    return trained.trainer


def go_on(
    case: Case, run: Run, text: Tokens, folder: Path, kill: Callable[[int], None] = lambda step: None
) -> Trainer:
    """Train from the newest checkpoint to the end, or until `kill` raises after an update."""
    checkpoints = Checkpoints(folder, CheckpointConfig(every=EVERY), {}, warn=pytest.fail)
    trainer = trainer_of(case, run, text)
    if (found := checkpoints.newest()) is not None:
        restore(trainer, found)
        trainer.batches = text.batches(BATCH, run.seed, found.step * run.train.grad_accum)

    def after(step: int) -> None:
        if step >= WARMUP_STEPS + METERED_STEPS and checkpoints.due(step):
            checkpoints.save(step, state_of(trainer))
        kill(step)

    trainer.run(lambda event: None, after)
    return trainer


def course(trainer: Trainer) -> dict[str, Any]:
    """What a record holds of a training, without times, nor the peak: here other trainers are alive."""
    left_out = ("step_s", "refresh_step", "timed_steps", "memory")
    found = {name: value for name, value in vars(trainer.result).items() if name not in left_out}
    memory = {**vars(trainer.result.memory), "peak_bytes": trainer.result.memory.peak_bytes > 0}
    return {**found, "memory": memory}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def assert_kills_change_nothing(
    case: Case, folder: Path, kills: Sequence[int], run: Run | None = None, text: Tokens | None = None
) -> None:
    run, text = run or run_of(case), text or tokens()
    whole = go_on(case, run, text, folder / "whole")
    for moment in kills:

        def kill(step: int, moment: int = moment) -> None:
            if step >= moment:  # later where a checkpoint was saved at the moment itself
                raise KilledError

        with pytest.raises(KilledError):
            go_on(case, run, text, folder / "killed", kill)
    resumed = go_on(case, run, text, folder / "killed")
    assert resumed.first > 0
    assert all(map(math.isfinite, whole.result.loss))
    assert course(resumed) == course(whole)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    states = [dict(trainer.stepper.state_tensors()) for trainer in (resumed, whole)]
    assert same(*states)


@pytest.mark.parametrize("name", FAST)
def test_two_kills_change_no_bit(name: str, tmp_path: Path) -> None:
    assert_kills_change_nothing(CASES[name], tmp_path, [8, 13])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_twenty_kills_change_no_bit(name: str, tmp_path: Path) -> None:
    drawn = random.Random(name)
    moments = sorted(drawn.choices(range(WARMUP_STEPS + METERED_STEPS + 1, STEPS), k=20))
    assert_kills_change_nothing(CASES[name], tmp_path, moments)


def test_accumulated_and_padded_batches_go_on_where_they_were(tmp_path: Path) -> None:
    case = CASES["lora"]
    assert_kills_change_nothing(case, tmp_path, [7, 16], run_of(case, grad_accum=3), tokens(padded=True))


def test_updates_right_after_a_resume_are_not_timed(tmp_path: Path) -> None:
    case = CASES["lora"]

    def kill(step: int) -> None:
        if step == 10:
            raise KilledError

    with pytest.raises(KilledError):
        go_on(case, run_of(case), tokens(), tmp_path, kill)
    resumed = go_on(case, run_of(case), tokens(), tmp_path)
    timed = resumed.result.timed_steps
    assert [step for step in range(1, STEPS + 1) if step not in timed] == [1, 2, 3, 4, 5, 10, 11]
    assert len(resumed.clock.seconds()) == len(timed) == len(resumed.clock.refreshed)


def test_a_kill_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["adarankgrad"]
    whole = go_on(case, run_of(case), tokens(), tmp_path / "whole")

    def die(path: Path, target: Path) -> None:
        raise KeyboardInterrupt  # which no handler of errors catches

    def before(step: int) -> None:
        if step == 10:
            monkeypatch.setattr(Path, "rename", die)
            monkeypatch.setattr(stored, "remove", lambda path: None)

    with pytest.raises(KeyboardInterrupt):
        go_on(case, run_of(case), tokens(), tmp_path / "killed", before)
    monkeypatch.undo()
    resumed = go_on(case, run_of(case), tokens(), tmp_path / "killed")
    assert resumed.first == 9
    assert course(resumed) == course(whole)


def test_batches_from_a_number_on_are_the_later_ones() -> None:
    def first(batches: Iterator[np.ndarray], count: int) -> list[list[list[int]]]:
        return [next(batches).tolist() for _ in range(count)]

    text = tokens()
    whole = first(text.batches(4, 3), 30)
    for number in (0, 1, 6, 7, 25):
        assert first(text.batches(4, 3, number), 30 - number) == whole[number:]
