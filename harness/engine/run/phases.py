"""The phases of one run (load, prepare, train, evaluate, export); each fills its part of the record."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness import no_effect
from harness import series as serieses
from harness.config import CalibrationConfig, CheckpointConfig, RandomData
from harness.digests import Digests
from harness.engine.contract import members
from harness.engine.data.calibration import CalibrationText, repeated, sha256_of
from harness.engine.data.tasks import SHIPPED_TASKS, check_room, existing_folder, load_tasks
from harness.engine.data.token_cache import TokenCache
from harness.engine.data.tokens import Tokens, load_tokens
from harness.engine.measure import components
from harness.engine.measure import speed as speeds
from harness.engine.measure.peak import meter_for
from harness.engine.models import checkpoint
from harness.engine.models.load import DTYPES, NO_TOKENIZER, context_of, load_model
from harness.engine.quality import perplexity, protocols
from harness.engine.quality.scored_text import ScoredText, write_sequences
from harness.engine.quality.tasks import evaluate_tasks
from harness.engine.run import checks, environment
from harness.engine.run.during import Scores
from harness.engine.run.inputs import verify
from harness.engine.run.prepare import assemble, keys, load_stack
from harness.engine.run.resuming import Resuming
from harness.engine.run.train import Trainer, TrainResult, Turn
from harness.errors import DivergedError, UserError, one_line
from harness.method import Caps, Context
from harness.record import Calibration, Data, Memory, Perplexity, Quality, Training

if TYPE_CHECKING:
    from harness.engine.models.load import LoadedModel
    from harness.engine.process.job import Job
    from harness.engine.run.record_writer import RecordWriter
    from harness.record import Phase

#: Longest prompt of a task, in tokens, for a model that sets no limit: the default of lm-eval.
NO_LIMIT = 2048


class RunInProgress:
    """A run and the state that one phase passes to the next."""

    model: Any  # a transformers causal LM; the methods see an nn.Module
    tokenizer: Any
    tokens: Tokens
    calibration: CalibrationText
    texts: dict[str, ScoredText]
    caps: Caps

    def __init__(self, job: Job, writer: RecordWriter) -> None:
        self.job, self.run = job, job.run
        self.writer, self.record, self.time = writer, writer.record, writer.time

    def carry_out(self) -> None:
        """Load, prepare, train, evaluate and export, as far as the run is configured to."""
        with self.writer.phase("load"):
            self.load()
        with self.writer.phase("prepare"):
            trainer = self.prepare()
        if trainer is not None:
            with self.writer.phase("train"):
                self.train(trainer)
        del trainer  # evaluation is not charged for optimizer states
        with self.writer.phase("evaluate"):
            self.evaluate()
        if self.run.save_weights:
            with self.writer.phase("export"):
                self.export()
        if self.record.training is not None and (broken := _not_finite(self.record.quality)):
            self.record.outcome.phase = "evaluate"  # told last: what was measured and trained is kept
            raise DivergedError(broken)

    # ------------------------------------------------------------------------------------ phases
    def load(self) -> None:
        """Load the model, the tokens and the texts to evaluate, and record what they are."""
        run = self.run
        self.device = checks.device(self.job.device)
        self.meter = meter_for(self.device)
        self.environment = self.record.environment = environment.describe(self.device, run.train.state_bits)
        cap_bytes = environment.cap(self.device)
        self.memory = self.record.memory = Memory(meter=self.meter.name, cap_bytes=cap_bytes)
        self.methods, self.caps = load_stack(run)
        torch.manual_seed(run.seed)
        self.writer.reading = "model"
        loaded = self._load_model()
        self.flops_per_token = speeds.flops_per_token(self.model, run.data.seq_len)
        self.writer.reading = "data"
        cache = self._token_cache()
        vocabulary = self.model.config.get_text_config().vocab_size
        self.tokens = load_tokens(run.data, self.tokenizer, vocabulary, run.seed, cache)
        self.calibration = self._load_calibration(cache, vocabulary)
        self.writer.reading = "evaluate"
        # Read now, though scored at the end: a missing text or task must not cost a training first.
        wanted = run.evaluate
        folders = [*SHIPPED_TASKS, *map(existing_folder, wanted.task_paths)]
        self.tasks = load_tasks(wanted.tasks, folders, wanted.task_data, wanted.shots) if wanted.tasks else {}
        check_room(self.tasks, context_of(self.model.config) or NO_LIMIT)
        self.texts = {
            item.name: protocols.build(item, run.data, self.tokenizer, cache) for item in wanted.perplexity
        }
        doubts = [self.tokens.warnings, *(text.warnings for text in self.texts.values())]
        self.record.warnings += itertools.chain.from_iterable(doubts)
        self._check_ids()
        self.writer.reading = None
        self.record.data = Data(
            name=self.tokens.name,
            revision=self.tokens.revision,
            sha256=self.tokens.sha256,
            documents=self.tokens.documents,
            tokens=self.tokens.count,
            dropped_tokens=self.tokens.dropped_tokens,
            real_tokens=self.tokens.real_tokens,
            dropped_rows=self.tokens.dropped_rows,
            model=loaded.name,
            model_sha256=loaded.sha256,
        )
        # All is read by now, so what has changed since the sweep looked at it shows here.
        known = verify(run, self.job.inputs, Digests(self.job.cache))
        self.record.inputs = known or None

    def prepare(self) -> Trainer | None:
        """Prepare the model by the stack of methods; return its trainer, None if the run only compresses."""
        with self.meter.window() as window:
            assembly = assemble(
                self.run,
                self.methods,
                self.model,
                lambda key, method: self._context(),
                self._batches(),
                self.meter,
            )
        self._peak("prepare", window.peak_allocated_bytes)
        self._note_calibration()
        self.model, self.record.parameters = assembly.model, assembly.parameters
        self.record.warnings += assembly.warnings
        if assembly.trainer is not None:
            self.record.warnings += no_effect.warm_up_alone(self.run.train)
        return assembly.trainer

    def train(self, trainer: Trainer) -> None:
        """Run the loop; record memory, time and losses, also of a training that fails."""
        try:
            if self.job.saving is None:
                trainer.run(self._progress(trainer), self._scores(trainer).after)
            else:
                self._train_on(trainer, self.job.saving)
        finally:
            self._note_training(trainer)
            self._note_device(trainer.turn)
        self.model.config.use_cache = True

    def _train_on(self, trainer: Trainer, config: CheckpointConfig) -> None:
        """Run the loop from the newest checkpoint, if there is one, and save further ones."""
        resuming = Resuming(config, self.job, trainer, self.writer)
        if resuming.restore():
            trainer.batches = self._batches(trainer.first * self.run.train.grad_accum)
            self.writer.notify(resumed=trainer.first, step=trainer.first, steps=self.run.train.steps)
        scores = self._scores(trainer, resuming.stopped)

        def after(step: int) -> None:
            scores.after(step)
            resuming.after(step)

        with resuming.saving_when_stopped():
            scores.after(trainer.first)  # an earlier process may have been stopped in this one
            resuming.end_if_stopped()
            trainer.run(self._progress(trainer), after)

    def _scores(self, trainer: Trainer, stopped: Callable[[], bool] = lambda: False) -> Scores:
        """Return what scores the model in training, if the run is configured to."""
        peak = partial(self._peak, "evaluate")
        return Scores(self.run.evaluate, self.texts, trainer, self.writer, peak, stopped)

    def _progress(self, trainer: Trainer) -> Callable[[dict[str, Any]], None]:
        """Return what is called with what there is to report; speed and memory are added."""

        def report(event: dict[str, Any]) -> None:
            peak = trainer.result.memory.peak_bytes
            more = {"peak_bytes": peak} if peak else {}
            self.writer.notify(**event, **self._speed(trainer.result), **more)

        return report

    def _batches(self, first: int = 0) -> Iterator[np.ndarray]:
        return self.tokens.batches(self.run.train.batch, self.run.seed, first)

    def evaluate(self) -> None:
        """Score every perplexity protocol and every task."""
        wanted = self.run.evaluate
        self.record.quality = Quality()
        for protocol, text in self.texts.items():
            self.writer.notify(task=protocol)
            with self.meter.window() as window:
                scored = perplexity.score(self.model, text.sequences, wanted.batch, self.device)
            write_sequences(self.job.folder / "windows" / f"{protocol}.jsonl", text, scored)
            self._peak("evaluate", window.peak_allocated_bytes)
            self.record.quality.perplexity[protocol] = Perplexity(
                perplexity=text.perplexity(scored),
                nll_nats=scored.nll_nats,
                tokens=scored.tokens,
                windows=len(text.sequences),
                dropped_tokens=text.dropped_tokens,
                context=text.context,
                text=text.text,
                floor=text.floor,
                batches=sum(map(len, text.batches)) or None,
            )
            longest, context = max(map(len, text.sequences)), context_of(self.model.config)
            if context is not None and longest > context:
                self.record.warnings.append(
                    f"{protocol} scores windows of {longest} tokens, the model's own context is {context}"
                )
        if self.record.training is None and (broken := _not_finite(self.record.quality)):
            self.record.warnings.append(broken)  # nothing diverged: it is what the compressed model scores
        if wanted.tasks:
            self.writer.notify(task=", ".join(wanted.tasks))
            self.record.quality.tasks = evaluate_tasks(
                self.model,
                self.tokenizer,
                self.tasks,
                limit=wanted.limit,
                batch=wanted.batch,
                device=self.device,
                max_length=context_of(self.model.config) or NO_LIMIT,
                samples_to=self.job.folder / "samples",
                warn=self.record.warnings.append,
            )

    def export(self) -> None:
        """Save the trained weights as a plain model; what was measured stays when they cannot be written."""
        for key, method in reversed(list(zip(keys(self.run), self.methods, strict=True))):
            self.model = members.export(key, method, self.model)
        try:
            if left := checkpoint.not_saved(self.model):
                self.record.warnings.append(
                    f"{checkpoint.NOT_WHOLE}, which has {left}: loaded again, they may give other scores"
                )
            checkpoint.save(self.model, self.tokenizer, self.job.folder / "weights")
        except Exception as error:
            self.record.warnings.append(
                f"the weights could not be saved: {one_line(error)}; --retry runs it again"
            )

    # ------------------------------------------------------------------------------------ parts
    def _token_cache(self) -> TokenCache:
        """Return the cache of tokens, whose warnings go into the record and whose progress to the parent."""
        return TokenCache(
            self.job.cache / "tokens",
            self.record.warnings.append,
            Digests(self.job.cache),
            lambda text: self.writer.notify(task=text),
        )

    def _load_model(self) -> LoadedModel:
        """Load the model and record the peak; what follows from its values is checked outside of that."""
        run = self.run
        with self.meter.window() as window:
            loaded = load_model(
                run.model,
                dtype=DTYPES[run.train.dtype],
                device=self.device,
                seed=run.seed,
                scratch=run.train.stage == "pretrain",
            )
        self._peak("load", window.peak_allocated_bytes)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._check_loaded(loaded)
        return loaded

    def _load_calibration(self, cache: TokenCache, vocabulary: int) -> CalibrationText:
        """Return the text that methods may look at: the training text, or one of its own."""
        run, wanted, tokens = self.run, self.run.calibration or CalibrationConfig(), self.tokens
        if wanted.data is not None:
            self.writer.reading = "calibration"
            tokens = load_tokens(wanted.data, self.tokenizer, vocabulary, run.seed, cache)
            self.record.warnings += tokens.warnings
        seed = run.seed if wanted.seed is None else wanted.seed
        return CalibrationText(tokens, wanted, run.train.batch, seed, self.device)

    def _check_loaded(self, loaded: LoadedModel) -> None:
        """Raise UserError for what shows once a model is loaded and would cost a whole training later."""
        if loaded.sha256 is not None:
            checkpoint.refuse_not_finite(self.model, loaded.name)
        if self.tokenizer is None and checks.reads_text(self.run):
            raise UserError(NO_TOKENIZER)
        if not self.run.save_weights:
            return
        needed, free = checkpoint.saved_bytes(self.model), shutil.disk_usage(self.job.folder).free
        if needed > free:
            raise UserError(
                f"save_weights needs {needed:,} bytes in {self.job.folder}, where {free:,} are free; make "
                "room, give a folder on another disk with --results, or leave save_weights out"
            )

    def _check_ids(self) -> None:
        """Raise UserError for a text to be scored with a token that the model has no embedding for."""
        size = self.model.config.get_text_config().vocab_size
        for name, text in self.texts.items():
            largest = max((int(max(sequence)) for sequence in text.sequences if len(sequence)), default=0)
            if largest >= size:
                raise UserError(
                    f"perplexity {name!r}: its text holds a token with id {largest}, but the model has a "
                    f"vocabulary of {size}; use the tokenizer that belongs to the model"
                )

    def _context(self) -> Context:
        run = self.run
        return Context(
            seed=run.seed, cache=self.job.cache, updates=run.train.steps, calibration=self.calibration
        )

    def _note_calibration(self) -> None:
        """Record the text that methods looked at, and warn where it is text to be scored."""
        read = self.calibration.windows()
        assert self.record.data is not None
        if not read:
            return
        self.record.data.calibration = Calibration(
            name=self.calibration.source,
            seed=self.calibration.seed,
            length=self.calibration.length,
            counts={what: len(windows) for what, windows in read.items()},
            sha256={what: sha256_of(windows) for what, windows in read.items()},
        )
        data = self.run.data if self.run.calibration is None else self.run.calibration.data or self.run.data
        if isinstance(data, RandomData) and (self.texts or self.tasks):
            self.record.warnings.append(
                "calibration: random tokens say nothing about the text that is scored; give calibration.data"
            )
        texts = {name: text.sequences for name, text in self.texts.items()}
        for what, windows in read.items():
            for name, count in repeated(windows, texts).items():
                self.record.warnings.append(
                    f"calibration: {count} of {len(windows)} {what} occur in the text of {name}, which is "
                    "therefore no unseen text; calibrate on other text"
                )

    def _note_training(self, trainer: Trainer) -> None:
        trained, window = trainer.result, trainer.result.memory
        per_step = self._tokens_per_step()
        self.record.training = Training(
            steps=len(trained.loss),
            tokens=len(trained.loss) * per_step,
            real_tokens=sum(trained.real_tokens[: len(trained.loss)]) if self.tokens.padded else None,
            refreshes=trained.refreshes,
            skipped_gradients=trained.skipped,
            rank_updates=sum(step <= len(trained.loss) for step, _ in trained.rank_moves) or None,
            scored=len(trained.curve) or None,
            resumed=list(trainer.resumed),
            extends=trainer.extends,
            **serieses.loss_summary(trained.loss),
        )
        self.writer.keep(trained.series())
        self.time.plain_steps = serieses.step_times(trained.step_s, trained.refresh_step, False)
        self.time.refresh_steps = serieses.step_times(trained.step_s, trained.refresh_step, True)
        self.time.tokens_per_step = per_step
        self.time.tokens_per_s = self._speed(trained).get("tokens_per_s")
        self.memory.reserved_bytes = components.reserved_bytes(self.device)
        self.memory.host_rss_bytes = components.host_rss_bytes()
        if self.record.parameters is not None:
            self.record.parameters.ranks |= trained.ranks
            for chosen in list(self.record.parameters.chosen_ranks.values())[-1:]:
                chosen |= {name: rank for name, rank in trained.ranks.items() if name in chosen}
        self.memory.train = window.summary()
        if self.memory.train is not None:
            self._peak("train", window.peak_bytes)

    def _note_device(self, turn: Turn) -> None:
        """Record what depends on the device: requested bytes, utilisation, and whether runs interleaved."""
        self.memory.requested_bytes = components.requested_bytes(self.device)
        peak = speeds.peak_flops(self.environment.device, self.run.train.dtype)
        self.time.mfu = speeds.utilisation(self.time.tokens_per_s, self.flops_per_token, peak)
        self.environment.flags |= turn.flags

    def _tokens_per_step(self) -> int:
        return self.run.train.batch * self.run.train.grad_accum * self.run.data.seq_len

    def _speed(self, trained: TrainResult) -> dict[str, float]:
        """Return tokens per second by the steps timed so far; empty without any."""
        speed = speeds.tokens_per_s(
            self._tokens_per_step(), trained.step_s, trained.refresh_step, self.caps.period
        )
        return {} if speed is None else {"tokens_per_s": speed}

    def _peak(self, phase: Phase, peak_bytes: int) -> None:
        peaks = self.memory.phase_peak_allocated_bytes
        peaks[phase] = max(peaks.get(phase, 0), peak_bytes)


def _not_finite(quality: Quality | None) -> str:
    """Return which protocols scored a loss that is not finite, in words; empty where all are finite."""
    scores = {} if quality is None else quality.perplexity
    names = [name for name, scored in scores.items() if not math.isfinite(scored.nll_nats)]
    return f"the loss of {', '.join(names)} is not finite, so its perplexity says nothing" if names else ""
