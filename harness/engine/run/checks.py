"""Check runs before a sweep: complete options, supported combinations, readable input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from harness.config import FilesData, MethodChoice, RandomData, Run, TaskData
from harness.engine.data import documents
from harness.engine.data.tasks import training_texts
from harness.engine.models.load import check_model, check_tokenizer
from harness.engine.quality import protocols
from harness.errors import UnsupportedError, UserError
from harness.method import Caps, Method, stack_caps
from harness.plugins import build, complete_options

T = TypeVar("T")


def device(name: str) -> torch.device:
    """Return a device by name; `auto` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"no device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} requested, but torch {torch.__version__} sees no CUDA device here")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"no device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0"
        )
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} cannot be measured; use auto, cpu, cuda or cuda:N")
    return chosen


def stack(run: Run) -> list[Method]:
    """Return the configured methods of a run, in order."""
    return [build(choice.name, choice.options) for choice in run.method]


def resolve(runs: Sequence[Run], text: bool = True, model: bool = True) -> list[Run]:
    """Return the runs with every method's options complete; UserError for input that cannot be read.

    Equal inputs are read once. Without `text` no training data is read: memory does not depend on it. Without
    `model` nothing is read: tables of records need neither.
    """
    if model:
        check_inputs(runs, text)
    resolved = [completed(run, number) for number, run in enumerate(runs)]
    if any(run.calibration for run in resolved) and not any(map(_looks_at_text, resolved)):
        raise UserError("calibration: no method of these rows looks at text before training; leave it out")
    for each in _unique(run.model for run in runs if reads_text(run)) if model and text else ():
        check_tokenizer(each)
    return resolved


def check_inputs(runs: Sequence[Run], text: bool = True) -> None:
    """Raise UserError for a model, a text or a protocol that cannot be used."""
    for model in _unique(run.model for run in runs):
        check_model(model)
    calibrated = [run.calibration.data for run in runs if run.calibration is not None]
    texts = [*(run.data for run in runs), *(data for data in calibrated if data is not None)]
    for data in _unique(texts) if text else ():
        if isinstance(data, FilesData):
            for _ in documents.documents_of_files(data):
                pass  # none is kept: the text may be larger than memory
        if isinstance(data, TaskData):
            training_texts(data)
    for evaluate, data in _unique((run.evaluate, run.data) for run in runs):
        for protocol in evaluate.perplexity:
            protocols.check(protocol, data)


def reads_text(run: Run) -> bool:
    """Return whether a run needs a tokenizer, to train or to evaluate."""
    wanted = run.evaluate
    looked_at = run.calibration is not None and run.calibration.data is not None
    return not isinstance(run.data, RandomData) or looked_at or bool(wanted.perplexity or wanted.tasks)


def _looks_at_text(run: Run) -> bool:
    return stack_caps(stack(run)).reads_text


def _unique(values: Iterable[T]) -> Iterable[T]:
    return {repr(value): value for value in values}.values()


def completed(run: Run, number: int | None = None) -> Run:
    """Return the run with every method's options complete; UserError, with its number, if they cannot be."""
    choices = []
    for position, choice in enumerate(run.method):
        try:
            choices.append(_complete(choice, build(choice.name, choice.options)))
        except UserError as error:
            path = ("method", position, choice.name, "options", *error.path)
            raise UserError(str(error), path, number) from error
    return run.model_copy(update={"method": tuple(choices), "label": run.name})


def _complete(choice: MethodChoice, method: Method) -> MethodChoice:
    """Return the choice with all options and what the method alone knows; UserError if it says otherwise."""
    version, options = method.version, complete_options(choice.name, method)
    if type(version) is not int or version < 1:
        raise UserError(f"method {choice.name}: its version is {version!r}; it must be a whole number from 1")
    as_before = tuple(name for name in options if version < method.later.get(name, 1))
    given = choice.model_fields_set & {"version", "as_before"}
    if given and (choice.version, choice.as_before) != (version, as_before):
        raise UserError(f"method {choice.name}: `version` and `as_before` are not for suites; leave them out")
    return MethodChoice(name=choice.name, options=options, version=version, as_before=as_before)


def supported(run: Run, methods: Sequence[Method]) -> Caps:
    """Return the capabilities of the stack; UnsupportedError with the reason if the run needs more."""
    caps = stack_caps(methods)
    names = " + ".join(choice.name for choice in run.method)
    if run.train.stage not in caps.stages:
        allowed = ", ".join(sorted(caps.stages))
        lacking = [method.caps for method in methods if run.train.stage not in method.caps.stages]
        because = "; ".join(dict.fromkeys(filter(None, (each.because for each in lacking))))
        reason = f": {because}" if because else ""
        does = f"it does: {allowed}" if allowed else "these methods have no stage in common"
        raise UnsupportedError(f"{names} does not do stage {run.train.stage!r} ({does}){reason}")
    if run.train.grad_accum > 1 and not caps.grad_accum:
        raise UnsupportedError(
            f"{names} updates inside the backward pass: gradient accumulation is not possible"
        )
    if run.train.clip is not None and not caps.grad_clip:
        raise UnsupportedError(f"{names} frees gradients inside the backward pass: clipping is not possible")
    if run.save_weights and caps.no_export:
        raise UnsupportedError(f"{names} exports no plain model: {caps.no_export}; leave out save_weights")
    _check_train_options(run, caps, names)
    return caps


def _check_train_options(run: Run, caps: Caps, names: str) -> None:
    """Refuse options that the stepper would silently ignore."""
    train = run.train
    if train.state_bits is not None and train.state_bits not in caps.state_bits:
        allowed = ", ".join(map(str, sorted(caps.state_bits))) or "only its own"
        raise UnsupportedError(
            f"{names} does not keep optimizer states in {train.state_bits} bits (it does: {allowed})"
        )
    if not train.per_layer:
        return
    if not caps.per_layer:
        about_stages = caps.stages != Caps().stages  # then the reason is one for these
        reason = f" ({caps.because})" if caps.because and not about_stages else ""
        raise UnsupportedError(
            f"{names} does not update inside the backward pass{reason}: leave out train.per_layer"
        )
    for setting, reason in (
        (train.grad_accum > 1, f"grad_accum {train.grad_accum} would update once per micro-batch; use 1"),
        (train.clip is not None, "the global norm is known only after the updates; leave out clip"),
    ):
        if setting:
            raise UnsupportedError(f"per_layer updates inside the backward pass: {reason}")
