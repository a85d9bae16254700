"""A check of the contract: the forecast, on tensors without values, is what the live meter counts."""

from __future__ import annotations

from harness.config import Run
from harness.engine.contract.checks import NotTried, needs_a_stepper
from harness.engine.contract.subject import Subject
from harness.engine.forecast.count import count
from harness.engine.forecast.dry_run import simulate
from harness.errors import MethodError
from harness.plugins import place
from harness.record import TrainMemory


def forecast(subject: Subject) -> str:
    """The memory predicted without values is the memory counted with them, to the byte."""
    needs_a_stepper(subject)
    methods = subject.methods()
    if any(method.caps.value_dependent and not method.approximations for method in methods):
        raise NotTried("its ranks depend on values, and it approximates none")
    run = _run(subject)
    predicted, counted = simulate(run, granularity=1).train, count(run).train
    assert predicted is not None
    assert counted is not None
    for name in (name for name in TrainMemory.model_fields if name.endswith("_bytes")):
        mine, live = getattr(predicted, name), getattr(counted, name)
        if mine != live:
            near = place(methods[-1].stepper, methods[-1].prepare)
            raise MethodError(
                f"{name} is {mine:,} in a forecast and {live:,} in a run; what prepare and "
                f"the stepper allocate must not depend on values{near}"
            )
    return f"peak of {counted.peak_allocated_bytes:,} bytes, predicted to the byte"


def _run(subject: Subject) -> Run:
    """Return a run of the stack on the smallest shape, in a stage that it can do."""
    stages = subject.caps.stages
    optim = subject.optim.model_dump(exclude_defaults=True)
    caps = subject.caps
    if not caps.grad_clip:
        optim["clip"] = None
    return Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": 24},
            "method": [{name: dict(options)} for name, options in subject.stack],
            "train": {**optim, "stage": "finetune" if "finetune" in stages else "pretrain", "batch": 3},
        }
    )
