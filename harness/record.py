"""The result of one run: a typed schema with a version, written atomically, read strictly.

Units are in the key names (`_bytes`, `_s`). An absent value means that it was not measured; there
are no sentinel numbers. A record never holds secrets: no environment variables, no tokens.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from harness.errors import UserError

SCHEMA_VERSION = 1
#: Version of each measurement protocol; records of different versions are never compared. A test
#: holds the hash of every ruler's source and asks for a bump when one changes.
PROTOCOLS: dict[str, int] = {"memory": 1, "time": 1, "perplexity": 1, "accuracy": 1}
#: Environment variables that change speed, memory or determinism.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "LOREBENCH_CUDA_GIB",
)

#: What a line of a traceback says before the part of a path that is the same on every machine.
TRACEBACK_PATH = re.compile(r'File "[^"]*/(?=(?:site-packages|lib/python[\d.]+|harness|methods|benchmarks)/)')

Status = Literal["ok", "oom", "timeout", "diverged", "unsupported", "error", "interrupted"]
Phase = Literal["load", "prepare", "train", "evaluate", "export"]
PHASES: tuple[Phase, ...] = ("load", "prepare", "train", "evaluate", "export")


class Part(BaseModel):
    """Base of all parts of a record; unknown keys are refused when a record is read."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Outcome(Part):
    """How the run ended. `interrupted` is what an unfinished record says, so a killed run reads so too."""

    status: Status = "interrupted"
    phase: Phase | None = None
    message: str = ""
    requested_bytes: int | None = None
    log_tail: list[str] = []

    @field_validator("message", "log_tail", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """Messages of the system may hold bytes that are no text, and tracebacks where this is installed."""
        if isinstance(value, str):
            return TRACEBACK_PATH.sub('File "', value).encode(errors="replace").decode()
        lines = value if isinstance(value, list) else []
        return [cls._encodable(line) if isinstance(line, str) else line for line in lines] or value


class TrainMemory(Part):
    """Peak allocated bytes of the training phase, within a window of steady-state steps, by component.

    Gradients are those alive before the update; transient is the rest of the peak (activations,
    workspace, batch). The steps of the window count from 1.
    """

    peak_allocated_bytes: int
    weights_trainable_bytes: int
    weights_frozen_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int
    transient_bytes: int
    window_first_step: int
    window_last_step: int
    refreshes_in_window: int


class Memory(Part):
    """Peaks per phase by one named meter (`cuda` or `live`); the rest is stored and never compared.

    `requested_bytes` is what tensors asked for at most since the last metered update began, without what
    CUDA's allocator adds to each; `cap_bytes` is what the run was held under on the device.
    """

    meter: Literal["cuda", "live"]
    phase_peak_allocated_bytes: dict[Phase, int] = {}
    train: TrainMemory | None = None
    reserved_bytes: int | None = None
    requested_bytes: int | None = None
    cap_bytes: int | None = None
    host_rss_bytes: int | None = None


class Time(Part):
    """Seconds by a clock that runs only while no meter slows the work down.

    `step_s` are the timed steps in order, `refresh_step` says which of them held a refresh. `mfu` is the
    share of the device's peak FLOP/s that training the dense architecture in full would take at this
    throughput (`measure.flops_per_token`); absent where the peak is not known.
    """

    phase_s: dict[Phase, float] = {}
    wall_s: float | None = None
    step_s: list[float] = []
    refresh_step: list[bool] = []
    tokens_per_step: int | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None


class RankMove(Part):
    """Ranks by matrix that a method chose anew in one update, counted from 1."""

    step: int
    ranks: dict[str, int]


class Training(Part):
    """The course of the training: one loss (nats per token) and learning rate per update.

    `refreshes` counts new subspaces over all matrices, `skipped_gradients` matrices left alone in an
    update because their gradient was not finite; absent from methods that have no such thing. `tokens` counts
    places in the batches, as throughput does; `real_tokens` those that are no padding, absent where none is.
    """

    steps: int
    tokens: int
    real_tokens: int | None = None
    loss: list[float]
    lr: list[float]
    grad_norm: list[float] = []
    refreshes: int | None = None
    skipped_gradients: int | None = None
    rank_moves: list[RankMove] = []


class Perplexity(Part):
    """exp(nll_nats / tokens); `floor` is the same for the generator itself, where it is known.

    With `batches`, which a protocol has that repeats a mean of batch means, `perplexity` is by that mean.
    """

    perplexity: float
    nll_nats: float
    tokens: int
    windows: int
    dropped_tokens: int
    context: int | None = None
    text: str
    floor: float | None = None
    batches: int | None = None


class Accuracy(Part):
    """Exact match counts of one task; accuracy times documents is a whole number.

    `unparsable` answers count as wrong. `legacy_accuracy` is what a script reports that leaves them out:
    right answers over the `legacy_documents` that it could read, absent where there are none. All three are
    absent from tasks whose papers score no other way.
    """

    accuracy: float
    stderr: float | None = None
    correct: int
    documents: int
    chance: float | None = None
    version: str
    unparsable: int | None = None
    legacy_accuracy: float | None = None
    legacy_documents: int | None = None


class Quality(Part):
    """What the trained model is worth."""

    perplexity: dict[str, Perplexity] = {}
    tasks: dict[str, Accuracy] = {}


class Parameters(Part):
    """Unique parameters of the prepared model; `ranks` and `facts` are what the methods report.

    `chosen_ranks` are those that followed from values, by method: a simulation needs them from here.
    `spectra` are singular values, by matrix, of the weights that a method was given: over the largest,
    descending, to four digits, at 33 evenly spaced places of the spectrum, ends included, or all where there
    are fewer. Absent where no method needed them, and in a simulation, which has none.
    """

    total: int
    trainable: int
    trainable_names: list[str] = []
    ranks: dict[str, int] = {}
    chosen_ranks: dict[str, dict[str, int]] = {}
    spectra: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}


class Environment(Part):
    """What the run ran on, so that only like is compared with like."""

    device: str
    cpu: str
    cpu_threads: int
    system: str
    python: str
    packages: dict[str, str]
    git_sha: str | None = None
    git_dirty_sha256: str | None = None
    driver: str | None = None
    flags: dict[str, str | bool | int] = {}


class Data(Part):
    """Exactly which tokens were trained on and which model they were fed to.

    `tokens` counts the places of all windows. Where each document has a row of its own, `real_tokens` of them
    are no padding, and `dropped_rows` documents were left out.
    """

    name: str
    revision: str | None = None
    sha256: str
    documents: int | None = None
    tokens: int
    dropped_tokens: int = 0
    real_tokens: int | None = None
    dropped_rows: int | None = None
    model: str
    model_sha256: str | None = None


class Record(Part):
    """Everything about one run."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    config_id: str
    suite: str
    label: str
    seed: int
    repeat: int
    tier: str
    protocols: dict[str, int] = PROTOCOLS
    config: dict[str, Any]
    rerun: str
    started_at: str | None = None
    outcome: Outcome = Outcome()
    parameters: Parameters | None = None
    memory: Memory | None = None
    time: Time | None = None
    training: Training | None = None
    quality: Quality | None = None
    data: Data | None = None
    environment: Environment | None = None
    warnings: list[str] = []

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: the run ended in a way of its own, by today's protocols."""
        return self.outcome.status != "interrupted" and self.protocols == PROTOCOLS


def write(record: Record, path: Path) -> None:
    """Write a record so that a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = record.model_dump_json(indent=1, exclude_none=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> Record:
    """Read a record; UserError says what is wrong with the file in one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Record:
    """The record that a text holds; UserError says what is wrong with it, and `where`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UserError(f"{where}: not a record: {error}; move it away and run again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version}, this lorebench reads {SCHEMA_VERSION}; "
            "use another --results folder or the version of lorebench that wrote it"
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: not a record: {place}: {first['msg']}") from error


def read_all(folder: Path) -> list[Record]:
    """All records of a folder, by name of file; the first unreadable one raises UserError."""
    return [read(path) for path in sorted(folder.glob("*.json"))]
