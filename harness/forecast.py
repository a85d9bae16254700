"""The result of simulating the memory of one run, typed and without torch.

All sizes are bytes that the allocator would report as allocated, each tensor rounded up as on a GPU.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.record import Phase, TrainMemory

FORECAST_VERSION = 1

#: The parts of an update. A per-layer stepper works inside the backward pass.
Part = Literal["forward", "backward", "update"]
PARTS: tuple[Part, ...] = ("forward", "backward", "update")

#: Memory that a simulation does not model; stated beside every forecast.
UNSEEN = (
    "not modelled: the device context, workspaces of matrix and decomposition libraries, memory that a "
    "kernel allocates internally, and fragmentation"
)


#: What decides how fast an operation is: a product of matrices by its smallest side, a decomposition by the
#: smaller side of its matrix, attention by its length; memory alone for all others.
Kind = Literal["product", "attention", "attention backward", "svd", "eigh", "qr", "memory"]


class Work(BaseModel):
    """`count` calls of one operation in one part of an update, all of the same size.

    `flops` counts a multiplication with an addition as two, `bytes` are read or written, `new_bytes` of them
    to memory that the operation allocates; all for one call. `size` is the side or the length that decides
    the rate of its kind, 0 where memory does.
    """

    model_config = ConfigDict(extra="forbid")

    part: Part
    kind: Kind
    operation: str
    dtype: str
    size: int
    count: int
    flops: int
    bytes: int
    new_bytes: int


class Peak(BaseModel):
    """The highest peak: its part of an update, its operation, and the bytes alive by group."""

    model_config = ConfigDict(extra="forbid")

    part: Part
    operation: str
    groups: dict[str, int]


class Scoring(BaseModel):
    """Scoring one batch of text by a prepared model, as the evaluation does: forward only, no gradients.

    `tokens` are those that the batch predicts, which is all but the first of each sequence. Weights, buffers
    and transient bytes (activations, logits, the batch) add up to the peak; `peak` says what was alive then.
    `flops_per_token` are those of a forward pass of the dense model, for utilisation.
    """

    model_config = ConfigDict(extra="forbid")

    tokens: int
    peak_allocated_bytes: int
    weights_bytes: int
    buffers_bytes: int
    transient_bytes: int
    peak: Peak
    work: list[Work] = []
    flops_per_token: float


class MemoryReport(BaseModel):
    """The memory of a run by phase, by component and at its peak.

    `train` is absent for a run that only compresses, and only that has `scoring`, whose peak is also that of
    phase `evaluate`. `ranks` names by method the source of ranks that depend on values; every tensor is
    rounded up to `granularity` bytes. `work` is that of one update without a refresh, `refresh_work` that of
    one with it, which comes every `period` updates. `flops_per_token` are those of full training, for
    utilisation.
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
    work: list[Work] = []
    refresh_work: list[Work] = []
    period: int | None = None
    flops_per_token: float | None = None
    scoring: Scoring | None = None
    ranks: dict[str, str] = {}
    warnings: list[str] = []
    packages: dict[str, str] = {}

    @property
    def peak_allocated_bytes(self) -> int:
        """The highest peak up to the end of training: what a device must have free, beside what is unseen.

        The peak of phase `evaluate` is left out: it is that of a batch of training, and a run scores batches
        of its own (`evaluate.batch`, the windows of each protocol), or none.
        """
        return max(self.run_peaks.values())

    @property
    def run_peaks(self) -> dict[Phase, int]:
        """The peak of each phase that a run goes through in any case, in bytes."""
        return {name: size for name, size in self.phase_peak_allocated_bytes.items() if name != "evaluate"}


Setting = Literal["batch", "seq_len"]
SETTINGS: tuple[Setting, ...] = ("batch", "seq_len")
#: The smallest values that a run may have: of a single token, there is none to predict.
LEAST: dict[Setting, int] = {"batch": 1, "seq_len": 2}


class Capacity(BaseModel):
    """The largest value of a setting that fits into `limit_bytes`, 0 when not even the least does.

    `peak_bytes` is its peak, `next_peak_bytes` that of the next value, the first that does not fit; absent
    where the search ended at a `bound`, described in words. `probes` counts simulations.
    """

    model_config = ConfigDict(extra="forbid")

    setting: Setting
    limit_bytes: int
    largest: int
    peak_bytes: int | None = None
    next_peak_bytes: int | None = None
    bound: str | None = None
    probes: int
