"""What a simulation says about the memory of one run, typed and without torch.

All sizes are bytes that the allocator would report as allocated, each tensor rounded up as on a GPU.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.record import Phase, TrainMemory

FORECAST_VERSION = 1

#: The parts of an update. What a per-layer stepper does runs inside the backward pass.
Part = Literal["forward", "backward", "update"]
PARTS: tuple[Part, ...] = ("forward", "backward", "update")

#: What a simulation cannot see; said beside every forecast.
UNSEEN = (
    "not seen by a simulation: the device context, workspaces of matrix and decomposition libraries, what a "
    "kernel allocates within itself, and fragmentation"
)


class Peak(BaseModel):
    """The moment of the highest peak: in which part, at which operation, and bytes alive by group."""

    model_config = ConfigDict(extra="forbid")

    part: Part
    operation: str
    groups: dict[str, int]


class MemoryReport(BaseModel):
    """The memory of a run by phase, by component and at its peak.

    `train` is absent for a run that only compresses. `ranks` says where ranks came from that depend on
    values, by method; `granularity` is what tensors were rounded up to.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = FORECAST_VERSION
    config_id: str
    granularity: int
    parameters_total: int
    parameters_trainable: int
    phase_peak_allocated_bytes: dict[Phase, int]
    part_peak_allocated_bytes: dict[Part, int] = {}
    train: TrainMemory | None = None
    peak: Peak | None = None
    ranks: dict[str, str] = {}
    warnings: list[str] = []
    packages: dict[str, str] = {}

    @property
    def peak_allocated_bytes(self) -> int:
        """The highest peak of all phases: what a device must have free, beside what is not seen."""
        return max(self.phase_peak_allocated_bytes.values())


Setting = Literal["batch", "seq_len"]


SETTINGS: tuple[Setting, ...] = ("batch", "seq_len")


class Capacity(BaseModel):
    """The largest value of a setting that fits into `limit_bytes`, 0 when not even 1 does.

    `peak_bytes` is the peak there, `next_peak_bytes` that of the next value, the first that does not fit;
    absent where the search ended at `bound`, which says what ended it. `probes` counts simulations.
    """

    model_config = ConfigDict(extra="forbid")

    setting: Setting
    limit_bytes: int
    largest: int
    peak_bytes: int | None = None
    next_peak_bytes: int | None = None
    bound: str | None = None
    probes: int
