"""The contract of `harness/method.py` as checks of any method: each trains a tiny model and looks.

A check returns what it saw, raises MethodError with what the contract says and the author's file and line, or
`NotTried` where the method does not promise what it checks.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from harness import factored
from harness.engine.contract import members
from harness.engine.contract.subject import LR, Subject, Trial, seed_everything
from harness.engine.contract.tiny import logits, tiny_batch
from harness.engine.measure.storages import parts, tensors_alive
from harness.engine.models import checkpoint
from harness.engine.resume import tree
from harness.engine.run import during
from harness.errors import MethodError, UserError
from harness.plugins import place
from harness.reachable import tensors_within

STEPS = 3
#: A gradient norm so small that no update survives it, whether or not it is divided by its own size.
TINY_CLIP = 1e-12
#: Accumulated gradients differ from those of one batch by rounding, which a sign makes large in few places.
SAME_UPDATE = 0.1
#: Elements from which optimizers keep a state in 8 bits (`min_8bit_size` of bitsandbytes).
SMALLEST_PACKED = 4096
#: Longer periods take too long to see twice.
LONGEST_PERIOD = 50


class NotTried(Exception):  # noqa: N818
    """A check that does not apply, with the reason."""


def model(subject: Subject) -> str:
    """The prepared model is a causal LM with a finite loss, and some parameters train."""
    trial = subject.trial()
    ids = tiny_batch()
    output = trial.model(input_ids=ids, labels=ids)
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or not loss.isfinite():
        raise MethodError(
            f"the prepared model has the loss {loss}; prepare returns a causal LM{_prepare(subject)}"
        )
    counts = [0, 0]
    for parameter in trial.model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return f"loss {loss.item():.3f}; {counts[1]:,} of {sum(counts):,} parameters train"


def updates(subject: Subject) -> str:
    """Updates change each trainable parameter and nothing else, and leave finite numbers.

    What trains may change from one update to the next, so a frozen parameter must rest in each, unless
    caps.merges promises otherwise.
    """
    trial, merges = subject.trial(), subject.caps.merges
    losses: list[float] = []
    trained: set[str] = set()
    moved: set[str] = set()
    wrongly: set[str] = set()
    after = trial.weights()
    for step in range(STEPS):
        before = after
        trainable = {name for name, parameter in trial.model.named_parameters() if parameter.requires_grad}
        losses += trial.train(step, step + 1)
        after = trial.weights()
        changed = {name for name, weight in after.items() if not weight.equal(before[name])}
        trained, moved = trained | trainable, moved | changed
        wrongly |= set() if merges else changed - trainable
    near = _near(subject, trial.stepper.step)
    broken = [name for name, weight in after.items() if not weight.isfinite().all()]
    if broken or not all(map(math.isfinite, losses)):
        where = f" in {broken[0]}" if broken else ""
        raise MethodError(f"after {STEPS} updates there are NaN or infinite values{where}{near}")
    for name in after:
        if name in wrongly or name in trained - moved:
            kind = "is frozen and moves" if name in wrongly else "has requires_grad and never moves"
            raise MethodError(f"{name} {kind}; what trains is what has requires_grad{near}")
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} updates"


def states(subject: Subject) -> str:
    """`state_tensors` names every tensor that lives from one step to the next, once."""
    subject.trial().train(0, STEPS)  # what a library makes at its first call is not the stepper's
    gc.collect()
    earlier = keys(tensors_alive())
    trial = subject.trial()
    trial.train(0, STEPS)
    gc.collect()
    near = _near(subject, trial.stepper.state_tensors)
    named = list(members.state_tensors(trial.stepper))
    names = [name for name, _ in named]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise MethodError(f"state_tensors yields the name {double[0]!r} more than once{near}")
    if left := [name for name, parameter in trial.model.named_parameters() if parameter.grad is not None]:
        raise MethodError(
            f"{len(left)} gradients outlive zero_grad, such as that of {left[0]}; free them, as by "
            f"grad = None{_near(subject, trial.stepper.zero_grad)}"
        )
    known = keys([*trial.model.parameters(), *trial.model.buffers(), *(tensor for _, tensor in named)])
    paths = {key: path for path, tensor in tensors_within(trial.stepper) for key in keys([tensor])}
    forgotten: dict[int, str] = {}
    for tensor in tensors_alive():
        for key in keys([tensor]) - known - earlier:
            forgotten[key] = paths.get(key, f"a tensor {tuple(tensor.shape)} outside of its attributes")
    if forgotten:
        shown = ", ".join(sorted(set(forgotten.values()))[:3])
        raise MethodError(
            f"{len(forgotten)} tensors live from one step to the next and are not named, so they count as "
            f"transient: {shown}; state_tensors yields every tensor that is kept{near}"
        )
    size = sum(part.untyped_storage().nbytes() for _, tensor in named for part in parts(tensor))
    return f"{len(named)} tensors of {size:,} bytes"


def resume(subject: Subject) -> str:
    """A state that went through a checkpoint continues bit for bit."""
    trial = subject.trial()
    trial.train(0, STEPS)
    near = _near(subject, trial.stepper.state_dict)
    checkpoint = _saved_and_loaded(
        {"model": trial.model.state_dict(), "stepper": trial.stepper.state_dict()}, near
    )
    drawn = torch.get_rng_state()
    wanted = trial.train(STEPS, 2 * STEPS)
    resumed = subject.trial()
    resumed.model.load_state_dict(checkpoint["model"])
    resumed.stepper.load_state_dict(checkpoint["stepper"])
    torch.set_rng_state(drawn)
    losses = resumed.train(STEPS, 2 * STEPS)
    other = _first_difference(trial.model.state_dict(), resumed.model.state_dict())
    if losses != wanted or other:
        what = f"losses {wanted} become {losses}" if losses != wanted else f"{other} differs"
        raise MethodError(
            f"a run resumed after {STEPS} updates goes on differently: {what}; state_dict holds all "
            f"that a bit-exact resume needs{near}"
        )
    return f"equal to the bit for {STEPS} updates after it"


def length(subject: Subject) -> str:
    """The first updates are the same however many follow, unless caps.fixed_length says otherwise."""
    few, many = 2 * STEPS, 20 * STEPS
    courses = []
    for updates in (few, many):
        trial = subject.trial(updates=updates)
        courses.append((trial.train(0, few), trial.model.state_dict()))
    (losses, mine), (wanted, theirs) = courses
    other = _first_difference(mine, theirs)
    if losses == wanted and not other:
        return f"equal to the bit for {few} updates, be they all or {few} of {many}"
    unlike = [step for step, pair in enumerate(zip(losses, wanted, strict=True), 1) if pair[0] != pair[1]]
    what = f"the loss of update {unlike[0]} differs" if unlike else f"{other} differs"
    if subject.caps.fixed_length:
        return f"others in a training of {few} updates than in one of {many}, as caps.fixed_length says"
    raise MethodError(
        f"the first updates of {many} are others than in a training of {few}: {what}; let them depend on "
        f"what has been, or set caps.fixed_length, so that no training is extended{_prepare(subject)}"
    )


def scored(subject: Subject) -> str:
    """A model that is scored in the middle of its training goes on as if it had not been."""
    courses, ids = [], tiny_batch(STEPS).tolist()
    for asked in (False, True):
        trial = subject.trial()
        losses = trial.train(0, STEPS)
        if asked:
            during.score(trial.model, ids, len(ids), torch.device("cpu"))
        losses += trial.train(STEPS, 2 * STEPS)
        courses.append((losses, trial.model.state_dict()))
    (wanted, before), (losses, after) = courses
    if losses != wanted or (other := _first_difference(before, after)):
        what = f"losses {wanted} become {losses}" if losses != wanted else f"{other} differs"
        raise MethodError(
            f"a training in which the model is scored goes on differently: {what}; a forward pass in "
            f"evaluation mode, without gradients, leaves all that trains as it is{_prepare(subject)}"
        )
    return f"equal to the bit for {STEPS} updates after it"


def copy(subject: Subject) -> str:
    """A loaded state is a copy: the two steppers share no tensor."""
    trial, other = subject.trial(), subject.trial()
    trial.train(0, STEPS)
    other.stepper.load_state_dict(trial.stepper.state_dict())
    mine, theirs = (keys(tensor for _, tensor in each.stepper.state_tensors()) for each in (trial, other))
    if mine & theirs:
        near = _near(subject, other.stepper.load_state_dict)
        raise MethodError(
            f"a loaded state shares {len(mine & theirs)} tensors with the one that it came from; "
            f"load_state_dict copies{near}"
        )
    return "no tensor is shared"


def rate(subject: Subject) -> str:
    """The rate of `set_lr` scales every update: another rate moves otherwise, zero moves nothing."""
    trials = [subject.trial(), subject.trial()]
    near = _near(subject, trials[0].stepper.set_lr)
    for trial, lr in zip(trials, (LR, 2 * LR), strict=True):
        trial.update(0, lr)
    if _first_difference(trials[0].weights(), trials[1].weights()) is None:
        raise MethodError(
            f"set_lr is ignored: one update at {LR} and one at {2 * LR} leave equal weights{near}"
        )
    trial = trials[0]
    trial.update(1)
    before = trial.weights()
    trial.update(2, lr=0.0)
    if name := _first_difference(before, trial.weights()):
        moved = float((trial.weights()[name] - before[name]).abs().max())
        raise MethodError(
            f"set_lr(0) is ignored: the update moves {name} by up to {moved:.2g}; every change, decay "
            f"included, is scaled by the last rate set{near}"
        )
    return "another rate moves otherwise, 0 moves nothing"


def randomness(subject: Subject) -> str:
    """Every random choice follows from `context.seed`, and the global random numbers are left alone."""
    seed_everything(9)
    before = _drawn()
    subject.prepared()
    if _drawn() != before:
        raise MethodError(
            f"prepare draws from the global random numbers, so the order of a stack changes runs; "
            f"draw from a generator seeded by context.seed{_prepare(subject)}"
        )
    first, second = (_seeded_around(subject, outside) for outside in (1000, 2000))
    for what, mine, theirs, near in (
        ("prepare", first[0], second[0], _prepare(subject)),
        ("the stepper", first[1], second[1], _near(subject, subject.stepper(subject.prepared()).step)),
    ):
        if name := _first_difference(mine, theirs):
            raise MethodError(
                f"{what} draws numbers that do not follow from context.seed: {name} differs between "
                f"two equal runs; use a generator seeded by it{near}"
            )
    return "two runs are equal to the bit whatever the global seeds"


def accumulation(subject: Subject) -> str:
    """caps.grad_accum: four micro-batches make the update of one batch, and nothing moves before `step`."""
    if not subject.caps.grad_accum or subject.optim.per_layer:
        raise NotTried("caps.grad_accum is False" if not subject.caps.grad_accum else "updates are per layer")
    moved = []
    for count in (1, 4):
        trial = _without_dropout(subject.trial())
        trial.update(0)  # what the first batch decides, it decides in both alike
        before = trial.weights()
        trial.stepper.set_lr(LR)
        for ids in tiny_batch(1, batch=8).split(8 // count):
            (trial.model(input_ids=ids, labels=ids).loss / count).backward()
        near = _near(subject, trial.stepper.step)
        if name := _first_difference(before, trial.weights()):
            raise MethodError(
                f"{name} moves in the backward pass, so grad_accum cannot work; caps.grad_accum "
                f"promises it{near}"
            )
        members.step(trial.stepper)
        trial.stepper.zero_grad()
        moved.append({name: weight - before[name] for name, weight in trial.weights().items()})
    whole, apart = (torch.cat([part.flatten() for part in each.values()]) for each in moved)
    share = float((whole - apart).norm() / whole.norm())
    if not share < SAME_UPDATE:
        raise MethodError(
            f"four micro-batches move the weights {share:.0%} otherwise than their batch at once; "
            f"caps.grad_accum promises the same update{near}"
        )
    return f"four micro-batches are one batch, {share:.1e} apart"


def clipping(subject: Subject) -> str:
    """caps.grad_clip: `train.clip` bounds the gradient norm that an update uses."""
    needs_a_stepper(subject)
    if not subject.caps.grad_clip or subject.optim.per_layer:
        raise NotTried("caps.grad_clip is False" if not subject.caps.grad_clip else "updates are per layer")
    found = []
    for clip in (None, TINY_CLIP):
        trial = subject.trial(subject.optim.model_copy(update={"clip": clip}))
        trial.train(0, 2)
        found.append(trial.weights())
    if _first_difference(*found) is None:
        raise MethodError(
            f"train.clip is ignored: at {TINY_CLIP} the updates are those without it; honour "
            f"optim.clip, or set caps.grad_clip to False{_near(subject, trial.stepper.step)}"
        )
    return f"a clip of {TINY_CLIP} changes the update"


def per_layer(subject: Subject) -> str:
    """caps.per_layer: with `train.per_layer` the backward pass updates and frees every gradient."""
    needs_a_stepper(subject)
    if not subject.caps.per_layer:
        raise NotTried("caps.per_layer is False")
    trial = subject.trial(subject.optim.model_copy(update={"per_layer": True, "clip": None}))
    before = trial.weights()
    trial.backward(0)
    near = _near(subject, trial.stepper.step)
    left = [name for name, parameter in trial.model.named_parameters() if parameter.grad is not None]
    if left:
        raise MethodError(
            f"with per_layer {len(left)} gradients outlive the backward pass, such as {left[0]}; "
            f"caps.per_layer promises that each is used and freed inside it{near}"
        )
    if _first_difference(before, trial.weights()) is None:
        raise MethodError(f"with per_layer the backward pass moves nothing{near}")
    members.step(trial.stepper)
    return "the backward pass updates and frees every gradient"


def state_bits(subject: Subject) -> str:
    """caps.state_bits: states in fewer bits take fewer bytes."""
    needs_a_stepper(subject)
    promised = sorted(subject.caps.state_bits - {32})
    if not promised:
        raise NotTried("caps.state_bits promises none below 32")
    wide, sizes, largest = _wide(subject), {}, 0
    for bits in (None, *promised):
        trial = wide.trial(subject.optim.model_copy(update={"state_bits": bits}))
        trial.train(0, 2)
        found = (part for _, tensor in members.state_tensors(trial.stepper) for part in parts(tensor))
        named = {key: part for part in found for key in keys([part])}
        sizes[bits] = sum(tensor.untyped_storage().nbytes() for tensor in named.values())
        largest = max([largest, *(tensor.numel() for tensor in named.values())])
    if largest < SMALLEST_PACKED:
        raise NotTried(f"no state has {SMALLEST_PACKED} elements, below which fewer bits save nothing")
    for bits in promised:
        if not sizes[bits] < sizes[None]:
            raise MethodError(
                f"states take {sizes[bits]:,} bytes with train.state_bits={bits} and {sizes[None]:,} "
                f"without; caps.state_bits promises {bits} bits{_near(subject, trial.stepper.state_tensors)}"
            )
    return ", ".join(f"{bits or 'its own'}: {size:,} bytes" for bits, size in sizes.items())


def _wide(subject: Subject) -> Subject:
    """Return the stack on a wider model, of one layer where that is enough for its options."""
    wide = replace(subject, shape={**subject.shape, "hidden": 256})
    thin = replace(wide, shape={**wide.shape, "layers": 1})
    with suppress(UserError):
        thin.prepared()
        return thin
    return wide


def period(subject: Subject) -> str:
    """caps.period: refreshes are reported, no further apart than promised, and come when asked for."""
    wanted = subject.caps.period
    trial = subject.trial()
    near = _near(subject, trial.stepper.step)
    ask = getattr(trial.stepper, "refresh_soon", None)
    if ask is None and wanted is None:
        raise NotTried("it has no refreshes of a fixed period")
    said = []
    if ask is not None:
        trial.train(0, 2)
        ask()
        if not trial.update(2)[1].refreshed:
            raise MethodError(f"the update after refresh_soon() does not say refreshed{near}")
        said.append("a refresh comes when asked for")
    if wanted is not None and wanted <= LONGEST_PERIOD:
        trial = subject.trial()
        marks = [trial.update(step)[1].refreshed for step in range(2 * wanted + 1)]
        steps = [step + 1 for step, refreshed in enumerate(marks) if refreshed]
        gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
        if not gaps or max(gaps) > wanted:
            raise MethodError(
                f"caps.period is {wanted}, but the updates that said refreshed are {steps or 'none'} of "
                f"{2 * wanted + 1}{near}"
            )
        said.append(f"updates {', '.join(map(str, steps))} refresh")
    return "; ".join(said) or f"not seen twice, as {wanted} updates lie between"


def exported(subject: Subject) -> str:
    """The exported model is plain, complete, and saved and loaded says what the trained one said."""
    if subject.caps.no_export:
        raise NotTried(subject.caps.no_export)
    trial = subject.trial()
    trial.train(0, STEPS)
    wanted, result = logits(trial.model), trial.model
    stack = list(zip(subject.stack, subject.methods(), strict=True))
    for (name, _), method in reversed(stack):
        result = members.export(name, method, result)
    near = _near(subject, stack[-1][1].export)
    if left := checkpoint.not_saved(result, code=False):
        raise MethodError(f"the exported model has {left}; export returns a plain one{near}")
    again = logits(checkpoint.reloaded(factored.merge(result)))
    apart = float((again - wanted).abs().max())
    if not torch.allclose(again, wanted, atol=1e-4, rtol=1e-4):
        code = checkpoint.not_saved(result)
        has = f" has {code} that is not saved:" if code else ","
        raise MethodError(
            f"the exported model{has} saved and loaded, it says something else: "
            f"logits differ by up to {apart:.2g}{near}"
        )
    return f"plain, with logits at most {apart:.1e} apart"


#: All checks that train a tiny model, by the name that a line of `lorebench check` has.
CHECKS: dict[str, Callable[[Subject], str]] = {
    "model": model,
    "updates": updates,
    "randomness": randomness,
    "states": states,
    "resume": resume,
    "length": length,
    "scored": scored,
    "copy": copy,
    "rate": rate,
    "accumulation": accumulation,
    "clipping": clipping,
    "per layer": per_layer,
    "state bits": state_bits,
    "period": period,
    "export": exported,
}
#: The checks that compare two models, each prepared anew: what differs without reason differs there, too.
COMPARING = frozenset(
    {"resume", "length", "scored", "rate", "accumulation", "clipping", "state bits", "forecast"}
)


# -------------------------------------------------------------------------------------------- parts
def needs_a_stepper(subject: Subject) -> None:
    """Raise NotTried for a stack that leaves its training to others."""
    if not subject.trains:
        raise NotTried("it has no stepper, so this is up to what it is stacked with")


def keys(tensors: Iterable[Tensor]) -> set[int]:
    """Return what identifies the storages of tensors."""
    return {part.untyped_storage()._cdata for tensor in tensors for part in parts(tensor)}


def _near(subject: Subject, member: object) -> str:
    """Return the place of a member, or of the method that brings it where its author did not write it."""
    method = subject.methods()[-1]
    return place(member, method.stepper, method.prepare)


def _prepare(subject: Subject) -> str:
    return place(subject.methods()[-1].prepare)


def _first_difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    """Return the first name whose tensors differ, None where all are equal to the bit."""
    return next((name for name, tensor in mine.items() if not tensor.equal(theirs[name])), None)


def _saved_and_loaded(content: dict[str, Any], near: str) -> dict[str, Any]:
    """Return what a checkpoint makes of it: tensors in safetensors, all else in JSON."""
    try:
        plain, tensors = tree.split(content)
        read = safetensors.torch.load(safetensors.torch.save(tensors))
        loaded: dict[str, Any] = tree.join(json.loads(json.dumps(plain)), read)
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise MethodError(
            f"state_dict cannot be saved and loaded safely: {said[0][:200]}; it holds tensors and plain "
            f"values only{near}"
        ) from error
    return loaded


def _drawn() -> list[object]:
    """Return the states of the global random numbers."""
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]


def _seeded_around(subject: Subject, outside: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights after prepare and after training, with other global seeds wherever the method works.

    A forward pass has the same ones: dropout draws from them, and a run seeds them.
    """
    seed_everything(outside)
    model = subject.prepared()
    prepared = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    seed_everything(outside + 1)
    trial = Trial(model, subject.stepper(model))
    model.train()
    for step in range(STEPS):
        trial.stepper.set_lr(LR)
        seed_everything(step)
        ids = tiny_batch(step)
        loss = model(input_ids=ids, labels=ids).loss
        seed_everything(outside + 10 + step)
        loss.backward()
        members.step(trial.stepper)
        trial.stepper.zero_grad()
    return prepared, trial.weights()


def _without_dropout(trial: Trial) -> Trial:
    for module in trial.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return trial
