"""The forecast of an update's time beside the time that a GPU took, at the rates calibrated there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache

import pytest
import torch

from harness import suite
from harness.config import Run
from harness.devices import DeviceProfile
from harness.engine.forecast.dry_run import simulate
from harness.engine.measure.calibration import calibrate
from harness.engine.measure.peak import meter_for
from harness.engine.measure.speed import StepClock
from harness.engine.run.train import Trainer
from harness.speed_forecast import forecast_speed
from tests.gpu.watching import batches, ready

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

#: Relative error of a forecast of the median update without a refresh.
WITHIN = 0.25
UPDATES, WARM_UP = 12, 4
ROWS = [
    f"{size}: {row}"
    for size in ("350m", "1b")
    for row in ("full", "lora", "galore", "sltrain", "welore 50 %")
]


@cache
def rates(device: torch.device) -> DeviceProfile:
    """The profile of the device, measured once."""
    return calibrate(device, "this GPU", 1.0, print)


def measured_s(run: Run, device: torch.device) -> float:
    """Median seconds of an update without a refresh."""
    model, stepper, _ = ready(run, device)
    tokens, clock = batches(run, model.config.vocab_size), StepClock(device)
    trainer = Trainer(model, stepper, tokens, run.train, device=device, meter=meter_for(device), clock=clock)
    trainer.model.train()
    for step in range(UPDATES):
        (trainer._timed_update if step >= WARM_UP else trainer._metered_update)(step)
    seconds = clock.seconds()
    return statistics.median(s for s, fresh in zip(seconds, clock.refreshed, strict=True) if not fresh)


@pytest.mark.parametrize("label", ROWS)
def test_a_forecast_is_near_what_a_gpu_takes(
    label: str, record_property: Callable[[str, object], None]
) -> None:
    (run,) = (run for run in suite.load("shapes").runs if run.name == label)
    device = torch.device("cuda")
    report = simulate(run).model_copy(update={"refresh_work": []})
    tokens = run.train.batch * run.data.seq_len
    forecast = forecast_speed(report, rates(device), tokens, run.train.dtype).step_s
    measured = measured_s(run, device)
    record_property("forecast_s", forecast)
    record_property("measured_s", measured)
    assert forecast == pytest.approx(measured, rel=WITHIN)
