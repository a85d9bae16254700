"""Entry point of the worker process, the only side that imports torch.

`worker resolve` completes and checks a list of runs; `worker run JOB` carries out one and classifies its
outcome; `worker simulate` answers requests for forecasts; `worker check` holds a method to the contract;
`worker calibrate` measures the rates of a device. Events go to the original standard output as JSON lines,
all other output to the log.
"""

from __future__ import annotations

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # Threads that spin while they wait collapse beside a busy neighbour; threads that sleep at once make a
    # small product twice as slow. So they spin for microseconds: for the next product, not for a time slice.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import DatasetsData, HubModel, Run, TaskData
from harness.digests import Digests
from harness.engine.process import forks, parent_watch
from harness.engine.process.freed_memory import keep_freed_memory
from harness.engine.process.job import Job
from harness.engine.run.record_writer import RecordWriter, take_stdout
from harness.errors import EXIT_BAD_INPUT, UserError, one_line
from harness.files import out_of_room
from harness.record import Outcome
from harness.validation import validate

if TYPE_CHECKING:
    from harness.engine.run.inputs import InputHashes

#: What runs import, and how, so that no thread is started and the hub stays unasked.
LIBRARIES = (
    *("harness.engine.run.phases", "harness.engine.run.outcome"),
    *("transformers.models.llama.modeling_llama", "lm_eval.models.huggingface", "lm_eval.tasks"),
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


def run_job(path: Path) -> int:
    """Carry out a job and return the exit code, 0 whenever the record has its final status."""
    started = time.perf_counter()
    job = Job.read(path)
    _go_offline_where_nothing_is_remote(job.run)
    try:
        writer = RecordWriter(job, started)
    except OSError as error:
        print(f"{job.record}: {one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        from harness.engine.run.phases import RunInProgress

        gc.freeze()  # imports left half a million objects, which the collector would search at every window
        RunInProgress(job, writer).carry_out()
    except UserError as error:
        writer.notify(error=str(error), input=writer.reading)
        writer.finish(Outcome(phase=writer.record.outcome.phase, message=str(error)))
        return EXIT_BAD_INPUT
    except BaseException as error:
        if out_of_room(error):  # not the run's fault: it is run again
            return _no_room(writer, error)
        from harness.engine.run.outcome import classify

        writer.finish(classify(error, writer.record.outcome.phase))
        return 0
    try:
        writer.finish(Outcome(status="ok", phase=writer.record.outcome.phase))
    except OSError as error:
        return _no_room(writer, error)
    return 0


def _no_room(writer: RecordWriter, error: BaseException) -> int:
    """Leave a run interrupted that found no room on the disk, and return the exit code."""
    place = getattr(error, "filename", None) or writer.path.parent
    why = getattr(error, "strerror", None) or one_line(error)
    message = f"{place}: {why}; make room, then the same command runs it again"
    writer.notify(error=message)
    with suppress(OSError):  # there may be no room for this, either
        writer.finish(Outcome(phase=writer.record.outcome.phase, message=message))
    return EXIT_BAD_INPUT


def resolve(request: dict[str, Any]) -> dict[str, Any]:
    """Complete the options of every run's methods, check all runs, and describe the device for the parent.

    With a folder `cache` in the request, the answer also holds the hashes of what each run reads. Where no
    `model` is read, what cannot be hashed has no hash, and the hub is not asked. `local` says that all that
    was asked for is on this machine.
    """
    runs = [validate(Run, run, where="run") for run in request["runs"]]
    local = _go_offline_where_nothing_is_remote(*runs)  # before the library of the hub is imported

    from harness.engine.run import checks
    from harness.engine.run.environment import device_id, machine_slug, total_bytes
    from harness.engine.run.inputs import InputHashes
    from harness.method import stack_caps

    device = checks.device(request["device"])
    reads = request.get("model", True)
    resolved = checks.resolve(runs, request.get("text", True), reads)
    hashes = InputHashes(Digests(Path(request["cache"])), ask_hub=reads) if request.get("cache") else None
    return {
        "runs": [run.model_dump(mode="json") for run in resolved],
        "device": str(device),
        "machine": machine_slug(device),
        "device_bytes": total_bytes(device),
        "device_id": device_id(device),
        "inputs": [_inputs(hashes, run, reads) for run in resolved] if hashes else None,
        "fixed_length": [stack_caps(checks.stack(run)).fixed_length for run in resolved],
        "local": local,
    }


def _inputs(hashes: InputHashes, run: Run, reads: bool) -> dict[str, str]:
    try:
        return hashes.of(run)
    except UserError:
        if reads:
            raise
        return {}


def _go_offline_where_nothing_is_remote(*runs: Run) -> bool:
    """Switch access to the hub off unless a run names something there; return whether it is off."""
    local = not any(map(_names_something_remote, runs))
    if local:  # local input needs no network
        os.environ.update(OFFLINE)
    return local


def _names_something_remote(run: Run) -> bool:
    texts = [run.data, None if run.calibration is None else run.calibration.data]
    names_hub = isinstance(run.model, HubModel) or any(isinstance(text, DatasetsData) for text in texts)
    from harness.engine.quality.protocols import reads_the_hub

    protocol = any(map(reads_the_hub, run.evaluate.perplexity))
    local = ("embedded", "paper_") if run.evaluate.task_data else ("embedded",)
    tasks = any(not name.startswith(local) for name in run.evaluate.tasks) and not run.evaluate.task_paths
    task_data = any(isinstance(text, TaskData) and text.folder is None for text in texts)
    return names_hub or protocol or tasks or task_data


def _die_with_the_parent() -> None:
    """Exit when the pipe from the parent closes, so that a killed parent leaves no orphan.

    The Linux kernel does the same: a thread of Python cannot act while native code holds the interpreter.
    """
    if parent_watch.watch(lambda: os._exit(1)):
        forks.end_with_parent()


def simulate(request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Answer the items of a request for forecasts, each sent as soon as it is known."""
    _go_offline_where_nothing_is_remote(
        *(validate(Run, item["run"], where="run") for item in request["items"])
    )
    from harness.engine.forecast.server import answer_all

    gc.freeze()  # as for a run: a simulation has several windows, too
    answer_all(request, send)


def check(request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Hold the method of a request to the contract; each outcome is sent as soon as it is known."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from harness.engine.contract.server import answer

    gc.freeze()
    answer(request, send)


def calibrate(request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Measure the rates of a device; send what is being measured, and at the end the profile."""
    from harness.engine.measure.calibration import calibrate
    from harness.engine.run import checks
    from harness.engine.run.environment import device_name, machine_slug, total_bytes

    device = checks.device(request["device"])
    machine, gib = machine_slug(device), total_bytes(device) / 2**30
    title = f"{device_name(device)} ({machine})"
    found = calibrate(device, title, round(gib, 1), lambda what: send({"measuring": what}))
    send({"machine": machine, "profile": found.model_dump(mode="json", exclude_none=True)})


#: What a worker does with a request, by the name that the command line gives.
REQUESTS = {"simulate": simulate, "check": check, "calibrate": calibrate}


def main(arguments: list[str]) -> int:
    """Answer a request, one line on standard input, or carry out `run JOB`; `fork` does so in forks."""
    keep_freed_memory()
    if arguments == ["fork"]:
        arguments = forks.serve(LIBRARIES, {**OFFLINE, **NO_THREADS})
    if len(arguments) == 2 and arguments[0] == "run":
        # A library may take the exception of Python's handler for an error of its own.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _die_with_the_parent()
        return run_job(Path(arguments[1]))
    if len(arguments) != 1 or arguments[0] not in ("resolve", *REQUESTS):
        names = " | ".join(("resolve", *REQUESTS))
        raise SystemExit(f"usage: python -m harness.engine.worker {names} | run JOB.json | fork")
    request = json.loads(sys.stdin.readline())
    _die_with_the_parent()
    answers = take_stdout()

    def send(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    try:
        if arguments == ["resolve"]:
            send(resolve(request))
        else:
            REQUESTS[arguments[0]](request, send)
    except UserError as error:
        send({"error": str(error), "path": error.path, "run": error.run})
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
