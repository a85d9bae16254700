"""Predict the peak memory of a run without its hardware: run its own code on tensors without values.

The model is built, prepared and trained as in a run, by the same methods, steppers and loop, so that the
prediction is exact up to allocations inside kernels. A first update, from gradients of zeros instead of a
backward pass, creates the optimizer state; the second is metered. It contains a refresh if the method has
any, so it needs at least as much as an update without. A run that only compresses makes no updates: there
one batch is scored instead, by the code of the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harness.config import Run
from harness.engine.contract import members
from harness.engine.forecast.attribution import Attribution
from harness.engine.forecast.fake_tensors import CUDA_GRANULARITY, Moment, SimulatedMeter, world
from harness.engine.measure.components import components
from harness.engine.measure.speed import flops_per_token
from harness.engine.models.load import DTYPES, build_empty
from harness.engine.quality import perplexity
from harness.engine.run import prepare
from harness.engine.run.train import Trainer
from harness.errors import UserError
from harness.forecast import PARTS, MemoryReport, Peak, Scoring
from harness.method import Context, Method, Simulated, StepInfo, Stepper
from harness.record import Phase

#: Attention without an explicit mask: with fake tensors transformers assumes that it is traced and builds a
#: (batch, 1, length, length) mask that no run has.
CAUSAL = "lorebench_causal"
PACKAGES = ("torch", "transformers")
#: Micro-batches of an update that are run: the first makes gradients, the second the sum of losses, and all
#: others do the same.
MICRO_BATCHES = 3

#: Ranks by layer for each method whose ranks depend on values, or the name of an approximation for all.
Ranks = dict[str, dict[str, int]] | str | None


def simulate(run: Run, ranks: Ranks = None, granularity: int = CUDA_GRANULARITY) -> MemoryReport:
    """Predict the memory of a run; raises UnsupportedError and UserError where the run itself would."""
    dry_run = DryRun(run, ranks, granularity)
    with world(dry_run.meter):
        return dry_run.report()


class DryRun:
    """A run on tensors without values, phase by phase."""

    def __init__(self, run: Run, ranks: Ranks, granularity: int) -> None:
        self.run, self.ranks = run, ranks
        self.methods, _ = prepare.load_stack(run)
        self.attribution = Attribution()
        self.meter = SimulatedMeter(self.attribution, granularity)
        self.sources: dict[str, str] = {}

    def report(self) -> MemoryReport:
        """Load, prepare and train or score, and report the peak of each phase."""
        with self.meter.window() as window:
            model = self._load()
        length = self.run.data.seq_len
        # Before methods replace layers. Of a sequence that is scored the last token is only predicted.
        dense_flops, forward_flops = flops_per_token(model, length), flops_per_token(model, length - 1) / 3
        peaks: dict[Phase, int] = {"load": window.peak_allocated_bytes}
        with self.meter.window() as window:
            accumulated = min(MICRO_BATCHES, self.run.train.grad_accum)
            train = self.run.train.model_copy(update={"grad_accum": accumulated})
            shortened = self.run.model_copy(update={"train": train})
            batches = self._micro_batches(accumulated)
            made = prepare.assemble(shortened, self.methods, model, self._context, batches, self.meter)
        peaks["prepare"] = window.peak_allocated_bytes
        report = MemoryReport(
            config_id=self.run.config_id,
            granularity=self.meter.granularity,
            parameters_total=made.parameters.total,
            parameters_trainable=made.parameters.trainable,
            phase_peak_allocated_bytes=peaks,
            ranks=self.sources,
            warnings=made.warnings,
            packages={name: version(name) for name in PACKAGES},
            flops_per_token=dense_flops,
        )
        if made.trainer is not None:
            self._train(made.model, made.trainer, report)
        else:
            self._score(made.model, forward_flops, report)
        return report

    def _load(self) -> Any:
        AttentionInterface.register(CAUSAL, sdpa_attention_forward)
        model: Any = build_empty(self.run.model, DTYPES[self.run.train.dtype])
        model.set_attn_implementation(CAUSAL)
        return model

    def _micro_batches(self, accumulated: int) -> Iterator[np.ndarray]:
        """Yield micro-batches; what the last of an update does counts for those that are left out, too."""
        batches = _batches(self.run.train.batch, self.run.data.seq_len)
        for number, batch in enumerate(batches, 1):
            left_out = 0 if number % accumulated else self.run.train.grad_accum - accumulated
            self.meter.count_operations(1 + left_out)
            yield batch

    def _train(self, model: nn.Module, trainer: Trainer, report: MemoryReport) -> None:
        self.attribution.follow(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        floats = (parameter for parameter in model.parameters() if parameter.is_floating_point())
        hooks = [self._follow_gradient(parameter) for parameter in floats]  # others never have a gradient
        trainer.stepper = LabellingStepper(trainer.stepper, model, self)
        _first_update(trained, trainer.stepper)
        before = len(self.meter.moments)
        refreshes = hasattr(trainer.stepper, "refresh_soon")
        seen = trainer.measure_memory(2 if refreshes else 1, warm=True).memory
        moments = self.meter.moments[before:]
        if refreshes:
            report.refresh_work, report.period = moments[-1].operations.work(), self._period(report)
        report.train = seen.summary()
        report.phase_peak_allocated_bytes["train"] = seen.peak_bytes
        plain = moments[0].operations
        if seen.refreshes == 2:  # some matrices were due in the first, too; none is after a refresh of all
            trainer.measure_memory(1, warm=True, refresh=False)
            plain = self.meter.moments[-1].operations
        report.work = plain.work()
        for hook in hooks:  # they form reference cycles
            hook.remove()
        report.part_peak_allocated_bytes = {
            part: max(moment.part_peaks.get(part, 0) for moment in moments) for part in PARTS
        }
        report.peak = _peak(max(moments, key=lambda moment: moment.peak_allocated_bytes))

    def _score(self, model: nn.Module, flops: float, report: MemoryReport) -> None:
        """Score one batch as the evaluation does; its logits are in memory all at once."""
        self.attribution.follow(model)
        self.meter.storages.label(model.buffers(), "buffers")
        self.meter.storages.label(model.parameters(), "weights")
        batch, length = self.run.train.batch, self.run.data.seq_len
        sequences = list(next(_batches(batch, length)))
        parts = components(model, ())
        with self.meter.window() as window:
            perplexity.score(model, sequences, batch, self.meter.device)
        moment, peak = self.meter.moments[-1], window.peak_allocated_bytes
        report.phase_peak_allocated_bytes["evaluate"] = peak
        report.scoring = Scoring(
            tokens=batch * (length - 1),
            peak_allocated_bytes=peak,
            weights_bytes=parts.weights_trainable_bytes + parts.weights_frozen_bytes,
            buffers_bytes=parts.buffers_bytes,
            transient_bytes=peak - parts.resident_bytes,
            peak=_peak(moment),
            work=moment.operations.work(),
            flops_per_token=flops,
        )

    def _period(self, report: MemoryReport) -> int | None:
        """Return the updates that refreshes are spread over; warn where these are not fixed."""
        caps = prepare.stack_caps(self.methods)
        if caps.period is None and caps.mean_period is not None:
            report.warnings.append(
                f"speed: a refresh of each matrix is counted once in {caps.mean_period} updates; training "
                "decides when they come"
            )
        return caps.period or caps.mean_period

    def _context(self, key: str, method: Method) -> Context:
        simulated = Simulated()
        if method.caps.value_dependent:
            simulated, self.sources[key] = self._source(key, method)
        return Context(seed=self.run.seed, updates=self.run.train.steps, simulated=simulated)

    def _source(self, key: str, method: Method) -> tuple[Simulated, str]:
        """Return the source of a method's ranks, for the method and as text for the report."""
        known = method.approximations
        if isinstance(self.ranks, dict):
            if key not in self.ranks:
                given = ", ".join(self.ranks) or "none"
                raise UserError(f"the given ranks are not for {key} (they are for: {given})")
            return Simulated(ranks=self.ranks[key]), "given ranks"
        if not known:
            raise UserError(f"the ranks of {key} depend on values, and it approximates none: give ranks")
        name = self.ranks if self.ranks is not None and self.ranks in known else next(iter(known))
        return Simulated(approximation=name), f"{name}: {known[name]}"

    def _follow_gradient(self, parameter: nn.Parameter) -> Any:
        """Return a hook that labels a gradient; what is frozen now may train in a later update."""
        trains = parameter.requires_grad
        hook = parameter.requires_grad_(True).register_post_accumulate_grad_hook(self._name_gradient)
        parameter.requires_grad_(trains)
        return hook

    def _name_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # a per-layer stepper may have freed it already
            self.meter.storages.label([parameter.grad], "gradients")


class LabellingStepper:
    """A stepper that marks its work outside of the backward pass and labels the tensors that outlive it."""

    def __init__(self, stepper: Stepper, model: nn.Module, dry_run: DryRun) -> None:
        self._stepper, self._model, self._dry_run = stepper, model, dry_run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stepper, name)

    def step(self) -> StepInfo:
        """Update, then label what remains."""
        attribution = self._dry_run.attribution
        attribution.updating = True
        self._dry_run.meter.count_operations(1)
        try:
            return members.step(self._stepper)
        finally:
            attribution.updating = False
            self.label()

    def label(self) -> None:
        """Label what outlives an update; a shared storage belongs to the owner labelled last."""
        label, parameters = self._dry_run.meter.storages.label, list(self._model.parameters())
        label((tensor for _, tensor in members.state_tensors(self._stepper)), "optimizer state")
        label(self._model.buffers(), "buffers")
        label((p for p in parameters if not p.requires_grad), "weights, frozen")
        label((p for p in parameters if p.requires_grad), "weights, trainable")


def _first_update(trained: list[nn.Parameter], stepper: Any) -> None:
    """Update from gradients of zeros, given through autograd since a per-layer stepper works in its hooks."""
    stepper.set_lr(0.0)
    for parameter in trained:
        parameter.view_as(parameter).backward(torch.zeros_like(parameter))
    stepper.step()
    stepper.zero_grad()


def _peak(moment: Moment) -> Peak:
    groups = {group: size for group, size in moment.groups.items() if size}
    return Peak(part=moment.part, operation=moment.operation, groups=groups)


def _batches(batch: int, length: int) -> Iterator[np.ndarray]:
    while True:
        yield np.zeros((batch, length), dtype=np.int64)
