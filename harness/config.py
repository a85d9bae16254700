"""Configure a run as data: its model, data, training, evaluation and methods, and its identity.

Nothing here imports torch; the options of a method are checked by the method's `Config`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from harness import identity
from harness.credentials import shown
from harness.errors import UserError, nearest
from harness.registry import PROTOCOLS, check_name, class_named, published_protocols, shipped_tasks
from harness.strict_yaml import Written

#: The largest count of anything that 32 bits hold, and the largest seed that torch, numpy and Parquet take.
MOST = (1 << 31) - 1
LARGEST_SEED = (1 << 63) - 1

#: Source: huggingface_hub.utils.validate_repo_id.
HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")

Positive = Annotated[int, Field(gt=0, le=MOST)]
#: Tokens per sequence: the last one is only predicted, so a sequence of one trains nothing.
Length = Annotated[int, Field(ge=2, le=MOST)]
Share = Annotated[float, Field(gt=0, lt=1)]


def _absent(value: Any) -> bool:
    """Return whether an option is off: then it is no part of a run's identity."""
    return value is None


def _packed(layout: str) -> bool:
    return layout == "packed"


#: Where a part of a config keeps the text that its run's id hashes, and a run its config's id.
_TEXT, _ID = "_text", "_id"


class Strict(BaseModel):
    """Frozen values; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some values changed, which are not checked."""
        copied = super().model_copy(update=update, deep=deep)
        if update and not update.keys() <= {"seed", "repeat"}:  # no id follows from these
            for kept in (_TEXT, _ID):
                copied.__dict__.pop(kept, None)
        return copied


# ---------------------------------------------------------------------------- where a model comes from
class EmbeddedModel(Strict):
    """The small trained LLaMA that ships with the project."""

    source: Literal["embedded"] = "embedded"


class ShapeModel(Strict):
    """A LLaMA of a named shape with random weights; `tokenizer` is a folder, for runs that read text.

    `spectrum: llama` gives the weights singular values shaped like those of trained ones
    (harness/spectrum.py), for methods whose ranks follow from them; None leaves them Gaussian. Widths
    and counts that are given replace those of the named shape.
    """

    source: Literal["shape"]
    name: str
    tokenizer: str | None = None
    hidden: Annotated[int, Field(gt=0, le=1 << 16)] | None = Field(default=None, exclude_if=_absent)
    intermediate: Annotated[int, Field(gt=0, le=1 << 18)] | None = Field(default=None, exclude_if=_absent)
    layers: Annotated[int, Field(gt=0, le=1 << 10)] | None = Field(default=None, exclude_if=_absent)
    heads: Annotated[int, Field(gt=0, le=1 << 10)] | None = Field(default=None, exclude_if=_absent)
    kv_heads: Annotated[int, Field(gt=0, le=1 << 10)] | None = Field(default=None, exclude_if=_absent)
    vocab: Annotated[int, Field(gt=0, le=1 << 20)] | None = Field(default=None, exclude_if=_absent)
    context: Annotated[int, Field(gt=0, le=1 << 20)] | None = Field(default=None, exclude_if=_absent)
    spectrum: Literal["llama"] | None = Field(default=None, exclude_if=_absent)


class LocalModel(Strict):
    """A Hugging Face folder on disk; never touches the network."""

    source: Literal["local"]
    path: str


class HubModel(Strict):
    """A Hugging Face hub id at a revision; safetensors only, no remote code."""

    source: Literal["hub"]
    id: str
    revision: str = "main"

    @field_validator("id")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if not HUB_ID.fullmatch(name):
            raise ValueError(
                f"{shown(name)} is no hub id; give OWNER/NAME, or a folder by model.source local"
            )
        return name


ModelConfig = Annotated[EmbeddedModel | ShapeModel | LocalModel | HubModel, Field(discriminator="source")]


# --------------------------------------------------------------------------- where tokens come from
class EmbeddedData(Strict):
    """The first `documents` training documents of the synthetic world: the base knows "a", "b" is new."""

    source: Literal["embedded"] = "embedded"
    world: Literal["a", "b"] = "b"
    documents: Positive = 6000
    seq_len: Length = 128


class FilesData(Strict):
    """Local text or JSONL files.

    `separator` splits a text file into documents (None: a file is one document); a backslash with n, r or t
    in it is the character that is meant. `field` is the key of the text in JSONL. The last `holdout` share
    of the documents is never trained on: it is what the protocol `heldout` scores. Nor is the last share
    `validation` of the others: settings are chosen by it, with the protocol `validation`. `end_token` ends
    each document with the tokenizer's end mark.

    `layout: packed` joins documents and cuts windows without padding; `rows` gives each document a row of
    its own, cut to `seq_len` (what is cut keeps its end mark) or padded on the right, as papers on
    pre-training with C4 do. What is held out is scored packed either way. `template: alpaca` makes a
    document of a row's instruction, input and output, and then `field` is not read.
    """

    source: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    field: str = "text"
    separator: str | None = None
    holdout: Share = 0.1
    validation: Share | None = Field(default=None, exclude_if=_absent)
    end_token: bool = True
    seq_len: Length = 512
    layout: Literal["packed", "rows"] = Field(default="packed", exclude_if=_packed)
    template: Literal["alpaca"] | None = Field(default=None, exclude_if=_absent)

    @field_validator("separator")
    @classmethod
    def _as_meant(cls, separator: str | None) -> str | None:
        if separator is None:
            return None
        for written, meant in (("\\r", "\r"), ("\\n", "\n"), ("\\t", "\t")):
            separator = separator.replace(written, meant)
        return separator


class DatasetsData(Strict):
    """A `datasets` id at a revision; the last `holdout` share of the (first `limit`) rows is held out.

    `validation`, `layout` and `template` as for files.
    """

    source: Literal["datasets"]
    id: str
    name: str | None = None
    revision: str = "main"
    split: str = "train"
    field: str = "text"
    limit: Positive | None = None
    holdout: Share = 0.1
    validation: Share | None = Field(default=None, exclude_if=_absent)
    end_token: bool = True
    seq_len: Length = 512
    layout: Literal["packed", "rows"] = Field(default="packed", exclude_if=_packed)
    template: Literal["alpaca"] | None = Field(default=None, exclude_if=_absent)


class TaskData(Strict):
    """The training split of a task in benchmarks/tasks, one example per row.

    `folder` holds the task's original files; None means the hub, for the tasks whose copy there is known
    to be the same. A row is `<s>` and the text, no end mark, padded on the right; `too_long` says what
    becomes of one that does not end before `seq_len`: drop it, as the papers' code does, or cut it.
    `validation` as for files.
    """

    source: Literal["task"]
    task: str
    folder: str | None = None
    too_long: Literal["drop", "cut"] = "drop"
    validation: Share | None = Field(default=None, exclude_if=_absent)
    seq_len: Length = 512

    @field_validator("task")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [task for task in shipped_tasks() if task.startswith("paper_") and task != "paper_tasks"]
        if name not in known:
            raise ValueError(f"no task {shown(name)} to train on; {nearest(name, known)}")
        return name


class RandomData(Strict):
    """Uniformly random token ids, for speed and memory alone."""

    source: Literal["random"]
    seq_len: Length = 512


DataConfig = Annotated[
    EmbeddedData | FilesData | DatasetsData | TaskData | RandomData, Field(discriminator="source")
]


MODELS: dict[str, type[Strict]] = {
    "embedded": EmbeddedModel,
    "shape": ShapeModel,
    "local": LocalModel,
    "hub": HubModel,
}
DATA: dict[str, type[Strict]] = {
    "embedded": EmbeddedData,
    "files": FilesData,
    "datasets": DatasetsData,
    "task": TaskData,
    "random": RandomData,
}


# ------------------------------------------------------------------------------------- training
class OptimConfig(Strict):
    """AdamW, the optimizer that all methods share (Loshchilov & Hutter 2019, arXiv 1711.05101).

    `state_bits` is the precision of the optimizer's states: 32 (float32), 16 (bfloat16) or 8
    (block-wise quantised, Dettmers et al. 2022, arXiv 2110.02861); None is the method's own choice.
    `per_layer` updates each tensor inside the backward pass, as soon as its gradient is there, and
    frees the gradient. Both are no part of a run's identity while they are off.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = None
    state_bits: Literal[32, 16, 8] | None = Field(default=None, exclude_if=_absent)
    per_layer: bool = Field(default=False, exclude_if=lambda on: not on)


#: A time as people write it: 90s, 30m, 2h.
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class CheckpointConfig(Strict):
    """How often the state of a training is saved, so that the same command goes on from there.

    `every` is a number of updates or a time, such as 90s, 30m or 2h. The newest `keep` checkpoints stay until
    the run has ended, and with `stay` the newest one after that, too: a longer training can begin there.
    """

    every: int | str = "30m"
    keep: Positive = 2
    stay: bool = False

    @field_validator("every", mode="before")
    @classmethod
    def _an_interval(cls, every: object) -> object:
        found = _TIME.fullmatch(every) if isinstance(every, str) else None
        updates = type(every) is int and 0 < every <= MOST
        if not updates and not (found and float(found[1])):
            raise ValueError(
                f"{shown(str(every))}: give a number of updates, or a time such as 90s, 30m or 2h"
            )
        return every

    @property
    def seconds(self) -> float:
        """Return the seconds from one checkpoint to the next, infinite where they follow the updates."""
        found = _TIME.fullmatch(str(self.every))
        return float(found[1]) * _SECONDS[found[2]] if found else math.inf


class TrainConfig(OptimConfig):
    """How long, on what batches and on which schedule.

    Stage `pretrain` starts from random weights in the model's architecture, `finetune` from its own
    weights; `compress` makes no updates at all.

    `warmup` is in steps; the cosine ends at `min_lr_ratio` of the peak. `batch` is sequences per
    micro-batch, so one update sees `batch * grad_accum * seq_len` tokens. `refresh_at` lists updates
    (counted from 1) in which methods with expensive refreshes make one out of turn, so that a run much
    shorter than their period still shows what one costs; it changes the training. `checkpoint` changes no
    figure and is no part of a run's identity.
    """

    stage: Literal["pretrain", "finetune", "compress"] = "finetune"
    steps: Positive = 100
    batch: Positive = 16
    grad_accum: Positive = 1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0, le=MOST)] = 0
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    refresh_at: tuple[Positive, ...] = Field(default=(), exclude_if=lambda updates: not updates)
    checkpoint: CheckpointConfig | None = Field(default=None, exclude_if=_absent)

    @property
    def canonical(self) -> dict[str, Any]:
        """Return the section as ids hash it and as records hold it."""
        return self.model_dump(mode="json", exclude={"checkpoint"})


class PerplexityConfig(Strict):
    """A perplexity protocol by name; `paths` gives local files to protocols that read a published text.

    The options are those of some protocols, which have defaults of their own (`harness/engine/quality`):
    `context` is the length of a window; `tokens` ends the text after as many; `batch` and `ranks` are rows a
    batch and processes of the code whose mean of batch means is repeated, and change its value.
    """

    protocol: str
    paths: tuple[str, ...] | None = None
    context: Length | None = Field(default=None, exclude_if=_absent)
    tokens: Positive | None = Field(default=None, exclude_if=_absent)
    batch: Positive | None = Field(default=None, exclude_if=_absent)
    ranks: Positive | None = Field(default=None, exclude_if=_absent)

    @field_validator("protocol")
    @classmethod
    def _one_name(cls, name: str) -> str:
        name = published_protocols().get(name, name)
        if name not in PROTOCOLS:
            raise ValueError(f"no perplexity protocol {shown(name)}; {nearest(name, PROTOCOLS)}")
        return name

    @property
    def options(self) -> dict[str, int]:
        """Return the options that were given."""
        return self.model_dump(exclude={"protocol", "paths"}, exclude_none=True)

    @property
    def name(self) -> str:
        """Return the protocol with its options: one run may have two with different options."""
        return _with_options(self.protocol, self.options)

    def answers_to(self, names: Sequence[str]) -> bool:
        """Return whether one of some names is that of the protocol, with its options or without."""
        return self.name in names or self.protocol in names


class DuringConfig(Strict):
    """Perplexity while a model trains, for its curve: after every `every` updates, counted from 1.

    `perplexity` are protocols that the run scores at its end, too, which ends the curve; None takes all of
    them. The update after each score is not timed, so `every` is at least 2.
    """

    every: Annotated[int, Field(ge=2, le=MOST)]
    perplexity: tuple[str, ...] | None = Field(default=None, exclude_if=_absent)

    @field_validator("perplexity")
    @classmethod
    def _names_here(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else tuple(published_protocols().get(name, name) for name in names)


class EvaluateConfig(Strict):
    """What is measured after training, and with `during` also in the middle of it.

    `tasks` are lm-eval names, found under `task_paths` first (the embedded tasks and those of
    benchmarks/tasks are always there). `task_data` is a folder with the original files of the latter; None
    means the hub, for the tasks whose copy there is known to be the same. `limit` cuts each task to its
    first documents, `shots` is how many solved examples precede each question (None: as the task says), and
    `batch` is sequences at a time for both rulers.
    """

    perplexity: tuple[PerplexityConfig, ...] = ()
    tasks: tuple[str, ...] = ()
    task_paths: tuple[str, ...] = ()
    task_data: str | None = Field(default=None, exclude_if=_absent)
    limit: Positive | None = None
    shots: Annotated[int, Field(ge=0, le=MOST)] | None = Field(default=None, exclude_if=_absent)
    batch: Positive = 32
    during: DuringConfig | None = Field(default=None, exclude_if=_absent)

    @property
    def in_training(self) -> list[str]:
        """Return the names of the protocols that are scored in the middle of a training."""
        if self.during is None:
            return []
        wanted = self.during.perplexity
        return [item.name for item in self.perplexity if wanted is None or item.answers_to(wanted)]

    @model_validator(mode="after")
    def _known_tasks(self) -> Self:
        """Refuse a misspelt name of a task that ships; others may be lm-eval's, or in a folder of tasks."""
        shipped = shipped_tasks() if self.tasks and not self.task_paths else ()
        for name in self.tasks if shipped else ():
            near = name.startswith(("embedded_", "paper_")) or get_close_matches(name, shipped, 1, 0.9)
            if near and name not in shipped:
                raise ValueError(f"no task {shown(name)}; {nearest(name, shipped)}")
        return self

    @field_validator("perplexity", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [{"protocol": item} if isinstance(item, str) else item for item in value]
        return value


# ---------------------------------------------------------------------------------------- a run
#: A class by its module or its file, as an option may name it.
_CLASS = re.compile(r"[\w./]+:[A-Za-z_]\w*")


class MethodChoice(Strict):
    """A method by name with its options; after `resolve` the options are complete.

    The method fills in the rest, which is not for a user to set: `version`, that of its arithmetic with these
    options, and `as_before`, the options that came later and change nothing at their values. The latter are
    no part of a run's identity, so that earlier records stay valid.
    """

    name: str
    options: dict[str, Any] = {}
    version: Positive = Field(default=1, exclude_if=lambda version: version == 1, repr=False)
    as_before: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1 and "name" not in value:
            name, options = next(iter(value.items()))
            return {"name": name, "options": {} if options is None else options}
        return value

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        check_name(name)
        return name

    @property
    def named_modules(self) -> list[str]:
        """Return the modules of the classes that options name."""
        texts = (value for value in self.options.values() if isinstance(value, str))
        return [class_named(text).partition(":")[0] for text in texts if _CLASS.fullmatch(text)]

    @property
    def canonical(self) -> dict[str, Any]:
        """Return the choice as ids hash it and as records hold it: without what is as before."""
        options = {key: value for key, value in self.options.items() if key not in self.as_before}
        return {**self.model_dump(mode="json", exclude={"as_before"}), "options": options}


class TuningConfig(Strict):
    """Where a run's learning rate comes from: a grid, tried by the runs of the suite of that name.

    `inputs` are hashes of the model and the text that it was tuned on, where they are known.
    """

    suite: str
    grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    inputs: dict[str, str] | None = Field(default=None, exclude_if=_absent)


class CalibrationConfig(Strict):
    """The text that methods look at before training, and how much of it; matters to methods that look at any.

    `data` is that text, as for training; None takes the training text itself. A method takes `sequences` of
    it (or as many as an option of its own says), and chooses settings by `validation` others; which ones
    follows from `seed`, None being that of the run.
    """

    data: DataConfig | None = None
    sequences: Positive = 128
    validation: Positive = 32
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _embedded_by_default(cls, value: Any) -> Any:
        return {"source": "embedded", **value} if isinstance(value, dict) else value


class Run(Strict):
    """One model, one method stack, one data set, one seed. The identity leaves out seed, repeat and label."""

    model: ModelConfig = EmbeddedModel()
    data: DataConfig = EmbeddedData()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    method: tuple[MethodChoice, ...] = Field(min_length=1)
    calibration: CalibrationConfig | None = Field(default=None, exclude_if=_absent)
    save_weights: bool = False
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    repeat: Annotated[int, Field(ge=0, le=MOST)] = 0
    label: str | None = None
    tuning: TuningConfig | None = Field(default=None, exclude_if=_absent)

    _written: Written | None = PrivateAttr(default=None)
    _misfit: UserError | None = PrivateAttr(default=None)

    def written_as(self, written: Written | None, misfit: UserError | None = None, **numbers: int) -> Run:
        """Return the run with what was written for it and what did not fit it: no part of its identity.

        `numbers` are a seed and a repeat, valid ones, of a run that differs in these alone.
        """
        run = self.model_copy(update=numbers)
        run.__dict__[_ID] = self.config_id
        run._written, run._misfit = written, misfit
        return run

    @property
    def misfit(self) -> UserError | None:
        """The mistake of an option of the command line that could not be applied to the run."""
        return self._misfit

    @property
    def written(self) -> Written | None:
        """What was written for the run, None for a run that nobody wrote."""
        return self._written

    def place(self, path: Sequence[int | str]) -> str | None:
        """Return the line or option that a setting came from, None for a run that nobody wrote."""
        return None if self._written is None else self._written.place(path)

    @field_validator("model", "data", mode="before")
    @classmethod
    def _embedded_by_default(cls, value: Any) -> Any:
        return {"source": "embedded", **value} if isinstance(value, dict) else value

    @field_validator("method", mode="before")
    @classmethod
    def _always_a_stack(cls, value: Any) -> Any:
        return list(value) if isinstance(value, (list, tuple)) else [value]

    @property
    def canonical(self) -> dict[str, Any]:
        """Return the config as records hold it: without what is off or as before, and without the label."""
        methods = [choice.canonical for choice in self.method]
        parts = {"train": self.train.canonical, "method": methods}
        return {**self.model_dump(mode="json", exclude={"label"}), **parts}

    @property
    def config_id(self) -> str:
        """Return twelve hex digits of a hash of the config: equal ids mean the same work up to the seed."""
        known: str | None = self.__dict__.get(_ID)
        if known is None:  # asked for many times
            data, evaluate, model, train = map(_text, (self.data, self.evaluate, self.model, self.train))
            method = ",".join(map(_text, self.method))
            parts = f'"data":{data},"evaluate":{evaluate},"method":[{method}],"model":{model},"train":{train}'
            if self.calibration is not None:  # the first of the keys
                parts = f'"calibration":{_text(self.calibration)},{parts}'
            known = self.__dict__[_ID] = identity.of_text(f"{{{parts}}}")
        return known

    @property
    def run_id(self) -> str:
        """Return the config's id with seed and repeat: one record each."""
        return f"{self.config_id}-s{self.seed}-r{self.repeat}"

    @property
    def name(self) -> str:
        """Return the label, else the stack with its options, for people."""
        return self.label or " + ".join(_with_options(choice.name, choice.options) for choice in self.method)

    @property
    def tier(self) -> str:
        """Return the tier that the run's numbers belong to: embedded, shapes or weights."""
        return {"embedded": "embedded", "shape": "shapes"}.get(self.model.source, "weights")


def _text(part: Strict) -> str:
    """Return a part of a config as ids hash it: made once, since the part does not change."""
    known = part.__dict__.get(_TEXT)
    if known is None:
        if isinstance(part, (MethodChoice, TrainConfig)):
            content = part.canonical
        else:
            content = part.model_dump(mode="json")
        known = part.__dict__[_TEXT] = identity.text_of(content)
    return known


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({given})" if given else name
