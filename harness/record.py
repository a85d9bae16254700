"""The result of one run: a typed schema with a version, written atomically, read strictly.

Units are in the key names (`_bytes`, `_s`). An absent value means that it was not measured; there
are no sentinel numbers. A record never holds secrets: no environment variables, no tokens.

The limits on values (`Count`, `Seconds`, `Part.contradiction`) apply only where a record is read for a
table: a run that measured an impossible value still writes its record, and a sweep still reads it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness import files, identity, strict_json
from harness.errors import UserError, bounded
from harness.plain_text import without_secrets

SCHEMA_VERSION = 1
#: Version of each measurement protocol; records of different versions are never compared. A test
#: holds the hash of every ruler's source and asks for a bump when one changes.
PROTOCOLS: dict[str, int] = {"memory": 1, "time": 1, "perplexity": 1, "accuracy": 1}
#: Environment variables that change speed, memory or determinism.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "CUBLAS_WORKSPACE_CONFIG",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "LOREBENCH_CUDA_GIB",
)

#: What a line of a traceback says before the part of a path that is the same on every machine.
TRACEBACK_PATH = re.compile(r'File "[^"]*/(?=(?:site-packages|lib/python[\d.]+|harness|methods|benchmarks)/)')

#: What stands in a record for the warnings that are too many.
MORE = "there were more warnings"
#: Warnings in a record, lines of the end of a log or of a traceback, and characters of each such line.
MOST_LINES = 50
LONGEST_LINE = 500

Status = Literal["ok", "oom", "timeout", "diverged", "unsupported", "error", "interrupted"]
Phase = Literal["load", "prepare", "train", "evaluate", "export"]
PHASES: tuple[Phase, ...] = ("load", "prepare", "train", "evaluate", "export")


#: The largest count, and the largest number of seconds, that a run can have measured.
LARGEST_COUNT = 1 << 60
#: The ending of the file of a series.
SERIES_SUFFIX = ".parquet"
#: Levels of containers in settings or facts; a stack of methods with their options has five.
DEEPEST_NESTING = 32


def _limit(possible: Callable[[Any], bool], reason: str) -> AfterValidator:
    """Refuse a value for which `possible` is false, where limits apply."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if info.context and not possible(value):
            raise ValueError(reason)
        return value

    return AfterValidator(check)


def _shallow(value: object) -> bool:
    """Return whether containers are nested at most `DEEPEST_NESTING` levels deep."""
    level = [value]
    for _ in range(DEEPEST_NESTING):
        level = [item for outer in level for item in _items(outer) if isinstance(item, (dict, list))]
    return not level


def _finite(value: object) -> bool:
    """Return whether every integer within containers can be converted to a float."""
    if isinstance(value, (dict, list)):
        return all(map(_finite, _items(value)))
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def _items(value: object) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


Index = Annotated[int, _limit(lambda value: value >= 0, "is negative")]
Count = Annotated[int, _limit(lambda value: 0 <= value <= LARGEST_COUNT, "is not a count")]
Positive = Annotated[Count, _limit(lambda value: value > 0, "is not a positive count")]
Seconds = Annotated[float, _limit(lambda value: 0 <= value <= LARGEST_COUNT, "is not a number of seconds")]
Speed = Annotated[float, _limit(lambda value: 0 < value <= LARGEST_COUNT, "is not a speed")]
Utilization = Annotated[float, _limit(lambda value: 0 <= value <= LARGEST_COUNT, "is not a share")]
Share = Annotated[float, _limit(lambda value: 0 <= value <= 1, "is not a share")]
#: NaN and infinity included: what a diverged model scores.
Score = Annotated[float, _limit(lambda value: not value < 0, "is negative")]
#: The exponential of a loss, which is not negative.
PerplexityScore = Annotated[float, _limit(lambda value: not value < 1, "is less than 1")]
Settings = Annotated[dict[str, Any], _limit(_shallow, f"is nested more than {DEEPEST_NESTING} levels deep")]
Facts = Annotated[Settings, _limit(_finite, "holds an integer larger than any float")]


class Part(BaseModel):
    """Base of all parts of a record; unknown keys are refused when a record is read."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", revalidate_instances="always")

    def contradiction(self) -> str | None:
        """Return which values contradict each other, None where all agree."""
        return None

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context and (reason := self.contradiction()):
            raise ValueError(reason)
        return self


class Outcome(Part):
    """How the run ended; an unfinished record reads `interrupted`, so a killed run does too.

    `attempts` counts those in a row that something outside the run ended; absent where there was none.
    """

    status: Status = "interrupted"
    phase: Phase | None = None
    message: str = ""
    requested_bytes: Count | None = None
    log_tail: list[str] = []
    attempts: Count | None = None

    @field_validator("message", "log_tail", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """Bound the text, hide secrets, and replace what is no text and a traceback's installation folder."""
        if isinstance(value, str):
            value = bounded(without_secrets(value))
            return TRACEBACK_PATH.sub('File "', value).encode(errors="replace").decode()
        lines = value[:MOST_LINES] if isinstance(value, list) else []
        lines = [bounded(line, LONGEST_LINE) if isinstance(line, str) else line for line in lines]
        return [cls._encodable(line) if isinstance(line, str) else line for line in lines] or value


class TrainMemory(Part):
    """Peak allocated bytes of the training phase, within a window of steady-state steps, by component.

    Gradients are those alive before the update; transient is the rest of the peak (activations,
    workspace, batch). The steps of the window count from 1.
    """

    peak_allocated_bytes: Count
    weights_trainable_bytes: Count
    weights_frozen_bytes: Count
    gradients_bytes: Count
    optimizer_bytes: Count
    buffers_bytes: Count
    transient_bytes: Count
    window_first_step: Count
    window_last_step: Count
    refreshes_in_window: Count

    def contradiction(self) -> str | None:
        """Return a reason where the components do not add up to the peak."""
        parts = sum(getattr(self, name) for name in COMPONENTS)
        return None if parts == self.peak_allocated_bytes else "the components do not add up to the peak"


#: Components of the peak, in the order of the schema; they add up to the peak.
COMPONENTS = tuple(
    name for name in TrainMemory.model_fields if name.endswith("_bytes") and not name.startswith("peak")
)


class Memory(Part):
    """Peaks per phase by one named meter (`cuda` or `live`); the rest is stored and never compared.

    `requested_bytes` is what tensors asked for at most since the last metered update began, or the last score
    in training, without what CUDA's allocator adds to each; `cap_bytes` is what the run was held under on the
    device.
    """

    meter: Literal["cuda", "live"]
    phase_peak_allocated_bytes: dict[Phase, Count] = {}
    train: TrainMemory | None = None
    reserved_bytes: Count | None = None
    requested_bytes: Count | None = None
    cap_bytes: Count | None = None
    host_rss_bytes: Count | None = None


def _empty(values: list[Any]) -> bool:
    return not values


class StepTimes(Part):
    """Seconds of the timed steps of one kind: how many, their median, and the 5th and 95th percentile."""

    count: Positive
    median_s: Seconds
    p05_s: Seconds
    p95_s: Seconds


class Time(Part):
    """Seconds by a clock that runs only while no meter slows the work down.

    `plain_steps` are the timed steps without a refresh, `refresh_steps` those with one; the seconds of each
    step are in the series. `mfu` is the share of the device's peak FLOP/s that training the dense
    architecture in full would take at this throughput (`measure.flops_per_token`); absent where the peak is
    not known. The phases add up to `wall_s`; neither has the writing of the series.

    Older records have the steps themselves: `step_s` in order, and whether each held a refresh.
    """

    phase_s: dict[Phase, Seconds] = {}
    wall_s: Seconds | None = None
    plain_steps: StepTimes | None = None
    refresh_steps: StepTimes | None = None
    step_s: list[Seconds] = Field(default=[], exclude_if=_empty)
    refresh_step: list[bool] = Field(default=[], exclude_if=_empty)
    tokens_per_step: Count | None = None
    tokens_per_s: Speed | None = None
    mfu: Utilization | None = None


class RankMove(Part):
    """Ranks by matrix that a method chose anew in one update, counted from 1."""

    step: Count
    ranks: dict[str, Count]


class Training(Part):
    """The course of the training in short; each update is in the series.

    Losses are nats per token; `lowest_loss` is the lowest finite one. `rank_updates` counts the updates in
    which a method chose ranks anew, `refreshes` new subspaces over all matrices, `skipped_gradients` matrices
    left alone in an update because their gradient was not finite; absent from methods that have no such
    thing. `scored` counts how often the model was scored in training; absent where it was not. `tokens`
    counts places in the batches, as throughput does; `real_tokens` those that are no padding, absent where
    none is. `resumed` has the number of updates done each time that another process went on from a
    checkpoint; `extends` is the id of the shorter run that did the first updates, absent without one.

    Older records have the series here: one `loss` and `lr` per update, `grad_norm` and `rank_moves`.
    """

    steps: Count
    tokens: Count
    real_tokens: Count | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    lowest_loss: float | None = None
    refreshes: Count | None = None
    skipped_gradients: Count | None = None
    rank_updates: Count | None = None
    scored: Count | None = None
    resumed: list[Count] = Field(default=[], exclude_if=_empty)
    extends: str | None = Field(default=None, exclude_if=lambda run_id: run_id is None)
    loss: list[float] = Field(default=[], exclude_if=_empty)
    lr: list[float] = Field(default=[], exclude_if=_empty)
    grad_norm: list[float] = Field(default=[], exclude_if=_empty)
    rank_moves: list[RankMove] = Field(default=[], exclude_if=_empty)


class Perplexity(Part):
    """exp(nll_nats / tokens); `floor` is the same for the generator itself, where it is known.

    With `batches`, which a protocol has that repeats a mean of batch means, `perplexity` is by that mean.
    """

    perplexity: PerplexityScore
    nll_nats: Score
    tokens: Positive
    windows: Positive
    dropped_tokens: Count
    context: Count | None = None
    text: str
    floor: Score | None = None
    batches: Count | None = None


class Accuracy(Part):
    """Exact match counts of one task; accuracy times documents is a whole number.

    `unparsable` answers count as wrong. `legacy_accuracy` is what a script reports that leaves them out:
    right answers over the `legacy_documents` that it could read, absent where there are none. All three are
    absent from tasks whose papers score no other way. `truncated` documents lost the beginning of a prompt
    that was longer than the model's context; `unfinished` answers were cut at the task's limit of tokens.
    Both are absent where there are none.
    """

    accuracy: float
    stderr: float | None = None
    correct: Count
    documents: Positive
    chance: Share | None = None
    version: str
    unparsable: Count | None = None
    legacy_accuracy: float | None = None
    legacy_documents: Count | None = None
    truncated: Count | None = None
    unfinished: Count | None = None

    def contradiction(self) -> str | None:
        """Return a reason where the accuracy does not follow from the counts."""
        if self.correct <= self.documents and abs(self.accuracy - self.correct / self.documents) < 1e-9:
            return None
        return "the accuracy does not follow from the counts"


class Quality(Part):
    """Quality of the trained model: perplexities by protocol, accuracies by task."""

    perplexity: dict[str, Perplexity] = {}
    tasks: dict[str, Accuracy] = {}


class Parameters(Part):
    """Unique parameters of the prepared model; `ranks` and `facts` are what the methods report.

    `chosen_ranks` are those that followed from values, by method: a simulation needs them from here.
    `spectra` are singular values, by matrix, of the weights that a method was given: over the largest,
    descending, to four digits, at 33 evenly spaced places of the spectrum, ends included, or all where there
    are fewer. Absent where no method needed them, and in a simulation, which has none.
    """

    total: Count
    trainable: Count
    trainable_names: list[str] = []
    ranks: dict[str, Count] = {}
    chosen_ranks: dict[str, dict[str, Count]] = {}
    spectra: dict[str, list[float]] = {}
    facts: Facts = {}


class Environment(Part):
    """Hardware and software of the run; only runs in equal environments are compared."""

    device: str
    cpu: str
    cpu_threads: Count
    system: str
    python: str
    packages: dict[str, str]
    git_sha: str | None = None
    git_dirty_sha256: str | None = None
    driver: str | None = None
    flags: dict[str, str | bool | int] = {}


class Calibration(Part):
    """The text that methods looked at before training: sequences of `length` tokens, `counts` by purpose
    (`sequences` for statistics, `validation` for choices), which follow from `seed`, and a hash of each."""

    name: str
    seed: Count
    length: Count
    counts: dict[str, Count]
    sha256: dict[str, str]


class Data(Part):
    """The training tokens and the base model, by name and hash.

    `tokens` counts the places of all windows. Where each document has a row of its own, `real_tokens` of them
    are no padding, and `dropped_rows` documents were left out.
    """

    name: str
    revision: str | None = None
    sha256: str
    documents: Count | None = None
    tokens: Count
    dropped_tokens: Count = 0
    real_tokens: Count | None = None
    dropped_rows: Count | None = None
    model: str
    model_sha256: str | None = None
    calibration: Calibration | None = None


class SeriesFile(Part):
    """The file beside the record that has a row per update: its name, hash and number of rows."""

    file: str = Field(pattern=rf"^[A-Za-z0-9-]+\.series\.[0-9a-f]{{8}}{re.escape(SERIES_SUFFIX)}$")
    sha256: str
    updates: Count


@dataclass(frozen=True)
class Beside:
    """Where a record was read from, and whether with limits; no part of what the record says."""

    bytes_of: Callable[[str, int], bytes] | None = field(default=None, compare=False)
    limits: bool = field(default=False, compare=False)

    def read(self, name: str, largest: int) -> bytes:
        """Return the bytes of a file beside the record; UserError where it is missing or larger."""
        if self.bytes_of is None:
            raise UserError(f"{name}: this record was not read from a file")
        return self.bytes_of(name, largest)


class Record(Part):
    """Everything about one run.

    `inputs` are hashes of the content that it read, by name (`weights`, `text d.jsonl`): runs of one config
    are the same run where these agree, too.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    config_id: str
    suite: str
    label: str
    seed: Index
    repeat: Index
    tier: str
    protocols: dict[str, Count] = PROTOCOLS
    config: Settings
    rerun: str
    started_at: str | None = None
    outcome: Outcome = Outcome()
    parameters: Parameters | None = None
    memory: Memory | None = None
    time: Time | None = None
    training: Training | None = None
    quality: Quality | None = None
    inputs: dict[str, str] | None = None
    data: Data | None = None
    environment: Environment | None = None
    series: SeriesFile | None = None
    warnings: list[str] = []
    _beside: Beside = PrivateAttr(default_factory=Beside)

    @property
    def beside(self) -> Beside:
        """Return the place of the record."""
        return self._beside

    def placed(self, bytes_of: Callable[[str, int], bytes], limits: bool) -> Self:
        """Let the files that the record names be read by `bytes_of`, given a name and the most bytes.

        `limits` says that the record was read with limits.
        """
        self._beside = Beside(bytes_of, limits)
        return self

    def contradiction(self) -> str | None:
        """Return a reason where the id of the run does not follow from its parts."""
        follows = self.run_id == f"{self.config_id}-s{self.seed}-r{self.repeat}"
        return None if follows else "run_id does not follow from config_id, seed and repeat"

    @property
    def finished(self) -> bool:
        """Return whether the run ended, and was measured by today's protocols."""
        return self.outcome.status != "interrupted" and self.protocols == PROTOCOLS


def write(record: Record, path: Path) -> None:
    """Write a record atomically: a reader sees the old one or the new one, never half of one.

    Its warnings are bounded first: each once, and at most `MOST_LINES`.
    """
    warnings = list(dict.fromkeys(map(bounded, record.warnings)))
    if len(warnings) > MOST_LINES:
        warnings[MOST_LINES - 1 :] = [MORE]
    record.warnings[:] = warnings
    files.replace(path, record.model_dump_json(indent=1, exclude_none=True) + "\n")


def read(path: Path, limits: bool = False) -> Record:
    """Read a record; UserError says what is wrong with the file in one line.

    With `limits`, a record is also refused whose values no run can have measured.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path), limits).placed(partial(bytes_beside, path.parent), limits)


def bytes_beside(folder: Path, name: str, largest: int) -> bytes:
    """Return the bytes of a file in a folder; UserError where it is missing or larger than `largest`."""
    try:
        with (folder / name).open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from error
    if len(content) > largest:
        raise UserError(f"{name}: larger than {largest >> 20} MiB")
    return content


def parse(text: str, where: str, limits: bool = False) -> Record:
    """Return the record that a text holds; UserError says what is wrong with it, and `where`."""
    try:
        content = strict_json.parse(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UserError(f"{where}: not a record: {error}; move it away and run again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version}, this lorebench reads {SCHEMA_VERSION}; "
            "use another --results folder or the version of lorebench that wrote it"
        )
    item = validated(content, where, limits)
    if identity.run_id(item.config) != item.run_id:
        raise UserError(
            f"{where}: the config in it is not that of run {item.run_id}: it was changed after the run, "
            "or belongs to another; restore the file, or move it away and run again"
        )
    if item.outcome.status == "ok" and item.environment is None:
        raise UserError(
            f"{where}: run {item.run_id} ended well, but `environment` is missing: it was changed after the "
            "run; restore the file, or move it away and run again"
        )
    return item


def validated(content: object, where: str, limits: bool = True) -> Record:
    """Return the record of parsed JSON, or a copy of a record; UserError for the first invalid value."""
    try:
        return Record.model_validate(content, context={"limits": True} if limits else None)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        reason = f"{place}: {message}" if place else message
        raise UserError(f"{where}: not a record: {reason}") from error
