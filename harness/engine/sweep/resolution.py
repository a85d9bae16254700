"""Complete the runs of a suite in a worker: options of methods, device, machine and hashes of inputs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import imports
from harness.config import Run
from harness.credentials import shown
from harness.engine.process.child import WORKER
from harness.engine.sweep.remembered import Remembered
from harness.errors import UserError
from harness.inputs import described, differing


@dataclass(frozen=True)
class Plan:
    """Runs with complete method options, and their device and machine.

    `device_bytes` is the total memory of the device, None if unknown. `device_id` names the same piece of
    hardware however it is numbered for a process, None if unknown. `inputs` are the hashes of what a run
    reads, by its id and then by name, where these were asked for. `local`: all that was asked for is on this
    machine. `fixed_length` are the ids of runs whose first updates depend on the number of all of them.
    """

    runs: tuple[Run, ...]
    device: str
    machine: str
    device_bytes: int | None = None
    device_id: str | None = None
    inputs: Mapping[str, dict[str, str]] = field(default_factory=dict)
    local: bool = False
    fixed_length: frozenset[str] = frozenset()


def resolve(
    runs: Sequence[Run],
    device: str = "auto",
    command: Sequence[str] = WORKER,
    *,
    text: bool = True,
    model: bool = True,
    cache: Path | None = None,
) -> Plan:
    """Complete all runs and choose the device, in a worker; UserError for what it refuses.

    Without `text` the worker does not read training data, without `model` it reads nothing. With `cache`, the
    folder of caches, it also hashes what the runs read. It is not started where its answer is remembered.
    """
    first = _first_of_each(runs)
    asked = [runs[number] for number in dict.fromkeys(first)]
    request: dict[str, Any] = {"runs": [run.model_dump(mode="json") for run in asked], "device": device}
    request |= {"text": text, "model": model, "cache": None if cache is None else str(cache.absolute())}
    remembered = Remembered({**request, "command": list(command)})
    content = remembered.answer()
    if content is None:
        content = _content([*command, "resolve"], request)
        if "error" in content:
            raise _placed(asked, content)
        if content.get("local"):
            remembered.keep(content)
    known = dict(zip(dict.fromkeys(first), map(Run.model_validate, content["runs"]), strict=True))
    resolved = tuple(
        known[number].written_as(run.written, seed=run.seed, repeat=run.repeat)
        for number, run in zip(first, runs, strict=True)
    )
    machine = (content["device"], content["machine"], content.get("device_bytes"))
    hashes = dict(zip(dict.fromkeys(first), content.get("inputs") or (), strict=False))
    inputs = {
        run.run_id: dict(hashes[number])
        for number, run in zip(first, resolved, strict=True)
        if number in hashes
    }
    _check_tuned(resolved, inputs)
    plans = dict(zip(dict.fromkeys(first), content.get("fixed_length") or (), strict=False))
    fixed = frozenset(run.run_id for number, run in zip(first, resolved, strict=True) if plans.get(number))
    return Plan(resolved, *machine, content.get("device_id"), inputs, content.get("local") is True, fixed)


def _check_tuned(runs: Sequence[Run], inputs: Mapping[str, dict[str, str]]) -> None:
    """Raise UserError for a rate that was tuned on a model or a text of another content."""
    for run in runs:
        tuned = (run.tuning.inputs if run.tuning else None) or {}
        if names := differing(tuned, inputs.get(run.run_id, {})):
            what = described(names, run.model_dump(mode="json"))
            raise UserError(
                f"{run.place(['tuning'])}: {what}: not what the learning rate of row {shown(run.name)} was "
                "tuned on; tune again with `lorebench tune`, or leave --rates out"
            )


def _content(command: Sequence[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of a worker; UserError says how it ended where it gives none."""
    answer = _answered(command, json.dumps(request).encode() + b"\n")
    with suppress(IndexError, TypeError, ValueError):
        content = dict(json.loads(answer.stdout.decode(errors="replace").strip().splitlines()[-1]))
        if "error" in content or {"runs", "device", "machine"} <= content.keys():
            return content
    lines = answer.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {answer.returncode} and no message"
    if answer.returncode < 0:
        last = f"it was killed by signal {-answer.returncode}; run the same command again"
    raise UserError(f"the worker could not read the runs: {last}")


def _answered(command: Sequence[str], request: bytes) -> subprocess.CompletedProcess[bytes]:
    """Send a worker a request and return its end and output; it ends with this process, by its open pipe."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=imports.environment()
    ) as process:
        request_pipe, process.stdin = process.stdin, None  # or `communicate` would close it
        assert request_pipe is not None
        try:
            with suppress(BrokenPipeError):  # the exit of a dead worker tells why
                request_pipe.write(request)
                request_pipe.flush()
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                request_pipe.close()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _first_of_each(runs: Sequence[Run]) -> list[int]:
    """Return for each run the place of the first that differs from it in seed and repeat alone.

    Neither matters to options, inputs and devices, and a suite has many seeds.
    """
    known: dict[tuple[str, bool, str | None, str], int] = {}
    parts = ((run.config_id, run.save_weights, run.label, repr(run.tuning)) for run in runs)
    return [known.setdefault(key, number) for number, key in enumerate(parts)]


def _placed(runs: Sequence[Run], answer: Mapping[str, Any]) -> UserError:
    """Return the error of a worker with the line or option that it is about, where the run tells."""
    number, text = answer.get("run"), str(answer["error"])
    place = None if number is None else runs[number].place(answer["path"])
    return UserError(text if place is None else f"{place}: {text}")
