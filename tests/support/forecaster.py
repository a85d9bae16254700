"""A worker that answers at once: a run needs as many GiB as its batch times the tokens it predicts.

`python -m tests.support.forecaster FOLDER VERB`. FOLDER/asked.txt gets a line for each start of `simulate`,
with the labels asked about. A run's label says what else happens: see `ANSWERS`, "die" and "hang". `resolve`
answers with FOLDER/device_bytes where that is there; `run` is left to the stub of the runner's tests.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from tests.support import forked

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
ANSWERS = {
    "unsupported": "it does not do that",
    "refused": "a file is missing",
    "failed": "the simulation failed: KeyError: 'x'",
}


def command(folder: Path) -> tuple[str, ...]:
    """What starts it."""
    return (*forked.command("tests.support.forecaster"), str(folder))


def asked(folder: Path) -> list[list[str]]:
    """For each start the labels of the questions."""
    file = folder / "asked.txt"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(folder: Path, verb: str) -> int:
    """Do what a worker does."""
    if verb == "run":
        stub = ROOT / "tests" / "runner" / "stub.py"
        os.execv(sys.executable, [sys.executable, "-S", "-E", str(stub), "run", sys.argv[3]])
    if verb == "resolve":
        runs = json.loads(sys.stdin.readline())["runs"]
        given = folder / "device_bytes"
        answer = {"runs": runs, "device": "stub", "machine": "stub-1"}
        print(json.dumps(answer | ({"device_bytes": int(given.read_text())} if given.exists() else {})))
        return 0
    if (folder / "broken").exists():
        return 3
    return simulate(folder)


def simulate(folder: Path) -> int:
    """Answer each question by its label."""
    from harness.config import Run
    from harness.engine.forecast.capacity import largest
    from harness.forecast import MemoryReport, Peak, Scoring, Work

    request = json.loads(sys.stdin.readline())
    with (folder / "asked.txt").open("a") as file:
        file.write(json.dumps([item["run"]["label"] for item in request["items"]]) + "\n")
    if request["ranks"] == "unknown":
        print(json.dumps({"error": "--ranks unknown: known: upper"}))
        return 2
    print(json.dumps({"ready": True}), flush=True)

    def peak(run: Run) -> int:
        return run.train.batch * (run.data.seq_len - 1) * GIB

    def scored(run: Run) -> Scoring:
        """A quarter of the peak is weights, and reading it once is all the work."""
        call = {"part": "forward", "kind": "memory", "operation": "add", "dtype": "float32", "size": 0}
        work = Work.model_validate({**call, "count": 1, "flops": 0, "bytes": peak(run), "new_bytes": 0})
        weights = peak(run) // 4
        groups = {"weights": weights, "logits and loss": peak(run) - weights}
        return Scoring(
            tokens=run.train.batch * (run.data.seq_len - 1),
            peak_allocated_bytes=peak(run),
            weights_bytes=weights,
            buffers_bytes=0,
            transient_bytes=peak(run) - weights,
            peak=Peak(part="forward", operation="add", groups=groups),
            work=[work],
            flops_per_token=1.0,
        )

    for item in request["items"]:
        run = Run.model_validate(item["run"])
        if run.label == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if run.label == "hang":
            time.sleep(600)
        if run.label in ANSWERS:
            answer = {"kind": run.label, "reason": ANSWERS[run.label]}
        elif item["setting"] is None:
            report = MemoryReport(
                config_id=run.config_id,
                granularity=512,
                parameters_total=1,
                parameters_trainable=1,
                phase_peak_allocated_bytes={"load": GIB // 2, "prepare": peak(run)},
            )
            if run.train.stage == "compress":
                report.scoring = scored(run)
            answer = {"kind": "report", "report": report.model_dump(mode="json")}
        else:
            bound = (64, "the bound")
            found = largest(run, item["setting"], item["limit"], peak, bound)
            answer = {"kind": "capacity", "capacity": found.model_dump(mode="json")}
        print(json.dumps({"key": item["key"], "answer": answer}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
