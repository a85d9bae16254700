"""A simulation predicts what the live meter sees, to the byte, for every method and stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.config import Run
from harness.engine.forecast.dry_run import simulate
from harness.engine.measure.peak import LiveMeter
from harness.engine.models.load import DTYPES, load_model
from harness.engine.quality import perplexity
from harness.engine.run import prepare
from harness.engine.run.train import MemoryWindow
from harness.method import Context, Method, Simulated, stack_caps
from harness.record import TrainMemory
from methods.parts.optim import eightbit
from methods.parts.tuners.catalogue import NO_FORECAST
from tests.contract.test_methods import CASES, COMPRESSED, Case
from tests.support.tiny import TinyText
from tests.unit.methods import test_peft

CPU = torch.device("cpu")
#: Blocks that divide the widths of the smallest shape.
NANO = {"C3A": {"block_size": 8}, "OFT": {"oft_block_size": 8}}
UPDATES = 8
PLAIN_AND_REFRESH = 3  # the simulation does without the plain update


def run_of(case: Case, **train: Any) -> Run:
    """A run of a stack on the smallest shape, in a stage that it can do."""
    methods = case.methods()
    stages = stack_caps(methods).stages
    optim = case.optim.model_dump(exclude_defaults=True)
    stage = "finetune" if "finetune" in stages else "pretrain"
    return Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": 24},
            "method": [{name: options} for name, options in case.stack],
            "train": {**optim, "stage": stage, "batch": 3, **train},
        }
    )


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded() -> None:
    """What a library makes at its first call is not of a run."""
    import bitsandbytes

    moments, scales, code = torch.zeros(256, dtype=torch.uint8), torch.zeros(1), torch.linspace(-1, 1, 256)
    bitsandbytes.functional.optimizer_update_8bit_blockwise(
        "adam",
        torch.ones(256),
        torch.ones(256),
        moments,
        moments.clone(),
        *(0.9, 0.999, 0.0, 0.0, 1e-8, 1, 1e-3),
        code,
        code,
        scales,
        scales.clone(),
    )


def watched(run: Run) -> tuple[MemoryWindow, dict[str, dict[str, int]]]:
    """What the live meter sees of the same updates with real tensors, and the ranks that were used."""
    eightbit._made_codebooks.cache_clear()
    methods, _ = prepare.load_stack(run)
    meter = LiveMeter(CPU)
    with meter.window() as before:
        torch.empty(0)
    model: Any = load_model(run.model, dtype=DTYPES[run.train.dtype], device=CPU, seed=0).model
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randint(64, (run.train.batch, 24), generator=generator).numpy() for _ in range(100))
    made = prepare.assemble(run, methods, model, same_ranks_at_every_refresh, tokens, meter)
    assert made.trainer is not None
    seen = made.trainer.measure_memory(PLAIN_AND_REFRESH).memory
    seen.peak_bytes -= before.peak_allocated_bytes
    return seen, made.parameters.chosen_ranks


def same_ranks_at_every_refresh(key: str, method: Method) -> Context:
    """Weights may decide about ranks here, gradients not: they would at each refresh anew.

    Nor may they decide about layouts, which cannot be given to a simulation.
    """
    if method.caps.value_dependent and "budget" in type(method.config).model_fields:
        return Context(simulated=Simulated())
    follows_gradients = method.caps.value_dependent and "pretrain" in method.caps.stages
    simulated = Simulated(ranks=SmallRanks()) if follows_gradients else None
    return Context(updates=UPDATES, simulated=simulated, calibration=TinyText())


class SmallRanks(dict[str, int]):
    """3 for a layer of whatever name."""

    def get(self, name: str, default: Any = None) -> int:
        return 3


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("name", CASES)
def test_the_simulated_peak_is_the_live_one_to_the_byte(name: str, checkpointing: bool) -> None:
    check_simulated(run_of(CASES[name], activation_checkpointing=checkpointing))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(test_peft.WORKING) - set(NO_FORECAST)))
def test_every_tuner_of_peft_that_has_a_forecast_is_simulated_to_the_byte(name: str) -> None:
    options = {"type": name, **test_peft.SMALL.get(name, {}), **NANO.get(name, {})}
    check_simulated(run_of(Case([("peft", options)])))


#: Stacks that may run without training, and some that cannot train.
COMPRESSIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    **{
        name: [*case.stack] for name, case in CASES.items() if "compress" in stack_caps(case.methods()).stages
    },
    "welore, not trained": [COMPRESSED],
    "compress by whitening": [("compress", {"factoriser": "whiten", "reduction": 0.5})],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_the_simulated_peak_of_scoring_is_that_of_the_evaluation_to_the_byte(name: str, dtype: str) -> None:
    run = run_of(Case(COMPRESSIONS[name]), stage="compress", dtype=dtype)
    methods, _ = prepare.load_stack(run)
    meter = LiveMeter(CPU)
    with meter.window() as before:
        torch.empty(0)
    model: Any = load_model(run.model, dtype=DTYPES[dtype], device=CPU, seed=0).model
    made = prepare.assemble(run, methods, model, same_ranks_at_every_refresh, iter(()), meter)
    del model
    sequences = list(np.random.default_rng(0).integers(64, size=(run.train.batch, 24)))
    with meter.window() as window:
        perplexity.score(made.model, sequences, run.train.batch, CPU)
    report = simulate(run, made.parameters.chosen_ranks, granularity=1)
    assert report.scoring is not None
    seen = window.peak_allocated_bytes - before.peak_allocated_bytes
    assert report.scoring.peak_allocated_bytes == report.phase_peak_allocated_bytes["evaluate"] == seen


def check_simulated(run: Run) -> None:
    """Assert that the simulation of a run has every byte of the live meter."""
    seen, ranks = watched(run)
    given = {key: SmallRanks() if key == "adarankgrad" else chosen for key, chosen in ranks.items()}
    report = simulate(run, given, granularity=1)
    expected = seen.summary()
    assert report.train is not None
    assert expected is not None
    same = {name for name in TrainMemory.model_fields if name.endswith("_bytes")}
    assert report.train.model_dump(include=same) == expected.model_dump(include=same)
    assert bool(report.train.refreshes_in_window) == bool(expected.refreshes_in_window)
