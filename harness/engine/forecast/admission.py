"""Admission to a device: which runs cannot fit, and why, before anything starts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.config import Run, ShapeModel
from harness.engine.forecast.cache import ForecastRequest, Notify
from harness.engine.forecast.client import ForecastClient
from harness.engine.models.shapes import shape_of

GIB = 1 << 30
#: A run needs no forecast on a device this many times larger than its weights and activations, counted
#: generously. Optimizer states and gradients in float32 are 5 times the weights.
AMPLE = 64


def refusals(
    runs: Sequence[Run], device: str, device_bytes: int, cache: Path, command: Sequence[str], notify: Notify
) -> dict[str, str]:
    """Return by run id why a run cannot fit: the peak of its own tensors exceeds all memory of the device.

    What a simulation does not model only adds to that. A run without a forecast is never refused; a failed
    simulation is reported through `notify`.
    """
    doubtful = [run for run in runs if run.tier != "embedded" and not is_ample(run, device_bytes)]
    forecasts = ForecastClient(cache, command, notify=notify)
    refused: dict[str, str] = {}
    failed: dict[str, None] = {}
    for run, answer in zip(doubtful, forecasts.ask([*map(ForecastRequest, doubtful)]), strict=True):
        if answer.kind == "failed":
            failed[f"{run.name}: no forecast of its memory: {answer.reason}"] = None
        elif answer.report is not None and answer.report.peak_allocated_bytes > device_bytes:
            refused[run.run_id] = _refusal(run, answer.report.peak_allocated_bytes, device, device_bytes)
    for text in failed:
        notify(text)
    return refused


def _refusal(run: Run, peak: int, device: str, device_bytes: int) -> str:
    place = "cuda:0" if device == "cuda" else device
    model = dict(run.model)
    name = str(model.get("name") or model.get("id") or model.get("path"))
    return (
        f"{name} {run.name}: needs at least {peak / GIB:.1f} GiB, {place} has {device_bytes / GIB:.1f} GiB; "
        "choose a smaller batch, length or model, see lorebench plan, or --force"
    )


def is_ample(run: Run, device_bytes: int) -> bool:
    """Return whether a device is so much larger than a named shape that a simulation would waste time.

    Counts weights, 64 hidden-sized tensors and all attention scores of every layer as alive at once, in
    float32, and requires `AMPLE` times that. A wrong True costs no more than this check before the run.
    """
    if not isinstance(run.model, ShapeModel):
        return False
    shape = shape_of(run.model)
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate
    weights = shape.layers * layer + 2 * shape.vocab * shape.hidden
    per_token = shape.vocab + shape.layers * (64 * shape.hidden + shape.heads * run.data.seq_len)
    return AMPLE * 4 * (weights + run.train.batch * run.data.seq_len * per_token) < device_bytes
