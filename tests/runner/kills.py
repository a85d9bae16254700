"""Kill sweeps that share a folder, at random moments, and look for what is lost, done twice or left over.

`python -m tests.runner.kills --kills 300 --seed 1` prints the counts. Sweeps are forked from this process,
which saves the imports; their workers are the stub, or with `--real` the real one on a tiny model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from sweeping import STUB, Remember, alive, stub_run, suite_of

from harness import record as records
from harness.config import Run
from harness.engine.runner import Settings, sweep
from harness.errors import UserError
from harness.record import PROTOCOLS, Record

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
VICTIMS = ("parent", "worker", "both")
#: What the folder holds before: nothing, records that follow older protocols, or failed ones.
MODES = ("new", "stale", "failed")


@dataclass
class Campaign:
    """One folder, its runs and the commands of the workers; `faults` gets a line for each finding."""

    folder: Path
    runs: Sequence[Run]
    command: tuple[str, ...]
    mode: str
    notes: Path | None = None
    faults: list[str] = field(default_factory=list)
    kept: dict[str, bytes] = field(default_factory=dict)
    workers: set[int] = field(default_factory=set)

    @property
    def place(self) -> Path:
        """The folder of the records."""
        return next((self.folder / "results").glob("*"), self.folder / "results" / "none") / "kills"

    def start(self, number: int) -> int:
        """Fork a sweep with a cache of its own and return its process id."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            settings = Settings(
                self.folder / "results",
                self.folder / f"cache-{number}",
                device="cpu",
                command=self.command,
                retry=self.mode == "failed",
                grace_s=2.0,
            )
            sweep(suite_of(*self.runs, name="kills"), settings, Remember(), lambda run: "")
            code = 0
        except KeyboardInterrupt as interrupt:
            code = 128 + getattr(interrupt, "number", 0)
        except UserError as error:  # the worker that reads the runs was killed
            code = 2 if "killed" in str(error) else self.trouble(error)
        except BaseException as error:
            code = self.trouble(error)
        finally:
            os._exit(code)

    def trouble(self, error: BaseException) -> int:
        """Keep the traceback of an exception that should not be, and return an exit code."""
        with (self.folder / "trouble.txt").open("a") as file:
            traceback.print_exception(error, file=file)
        return 1

    def prepare(self) -> None:
        """Let the folder hold what the mode says."""
        if self.mode != "new":
            self.mode, mode = "new", self.mode
            os.waitpid(self.start(0), 0)
            self.mode = mode
        for path, record in self.read():
            if self.mode == "stale":
                old = record.model_copy(update={"protocols": {**PROTOCOLS, "time": 0}})
                records.write(old, path)
            if self.notes and self.mode == "stale":
                self.notes.write_text(self.notes.read_text().replace("end ", "before "))
            if self.mode == "failed" and record.outcome.status != "error":
                self.faults.append(f"{record.run_id}: {record.outcome.status} before it is retried")
        self.first = {path.name: path.read_bytes() for path, _ in self.read()}

    def read(self) -> list[tuple[Path, Record]]:
        """Read all records; one that cannot be read is a fault."""
        found = []
        for path in sorted(self.place.glob("[!.]*.json")):
            try:
                found.append((path, records.read(path)))
            except Exception as error:
                self.faults.append(f"corrupt: {error}")
        return found

    def look(self) -> None:
        """Note what is finished now; what was finished before must be as it was."""
        found = {path.name: path for path, record in self.read() if self.is_final(record)}
        for name, content in self.kept.items():
            if name not in found:
                self.faults.append(f"lost: {name}")
            elif found[name].read_bytes() != content:
                self.faults.append(f"altered: {name}")
        self.kept |= {name: path.read_bytes() for name, path in found.items()}
        for name in self.first:
            content = (self.place / name).read_bytes()
            if content != self.first[name] and not self.is_final(records.parse(content.decode(), name)):
                self.faults.append(f"earlier record lost: {name}")
            hidden = any((self.place / f".{name[:-5]}.{stage}").exists() for stage in ("ready", "moving"))
            if not hidden and not (self.place / name[:-5] / "weights").is_dir():
                self.faults.append(f"weights lost: {name}")

    def is_final(self, record: Record) -> bool:
        """Return whether a record is what a sweep was to bring about."""
        return record.finished and record.outcome.status == "ok"

    def kill(self, parents: Sequence[int], choose: random.Random) -> str:
        """Kill one sweep, its worker or both, by a signal."""
        number, victim, parent = choose.choice(SIGNALS), choose.choice(VICTIMS), choose.choice(parents)
        workers = [pid for pid in children(parent) if pid not in parents]
        self.workers |= set(workers)
        if victim in ("worker", "both"):
            for worker in workers:
                send(worker, number)
        if victim in ("parent", "both"):
            send(parent, number)
        return f"{number.name} {victim}"

    def finish(self) -> None:
        """Let one sweep after the other run undisturbed, and look for what is wrong."""
        for number in (0, 1, 0):  # what was killed once is tried again; the third finds nothing to do
            _, status = os.waitpid(self.start(number), 0)
        if os.waitstatus_to_exitcode(status):
            self.faults.append(f"the last sweep ended with {os.waitstatus_to_exitcode(status)}")
        self.look()
        ids = {path.stem for path, record in self.read() if record.finished}
        # A run that was killed twice in a row has an ending, too.
        self.faults += [f"not done: {run.name}" for run in self.runs if run.run_id not in ids]
        left = [*self.place.glob(".*"), *self.folder.glob("cache-*/*.lock")]
        self.faults += [f"left over: {path}" for path in left]
        self.faults += [f"still running: {worker}" for worker in self.workers if alive(worker)]
        self.check_notes()

    def check_notes(self) -> None:
        """Each run ended once, and the weights beside a record are those of its run."""
        if self.notes is None:
            return
        entries = [line.split() for line in self.notes.read_text().splitlines()]
        wanted = 2 if self.mode == "failed" else 1
        ends = Counter(entry[1] for entry in entries if entry[0] == "end")
        self.faults += [f"twice: {run_id}, {count} times" for run_id, count in ends.items() if count > wanted]
        for path, record in self.read():
            weights = self.place / path.stem / "weights" / "nonce.txt"
            if record.outcome.status == "ok" and weights.read_text() != record.outcome.message:
                self.faults.append(f"weights of another attempt: {path.stem}")


def children(process: int) -> list[int]:
    """Return the processes that a process has started, however deep."""
    try:
        direct = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [pid for child in map(int, direct) for pid in (child, *children(child))]


def send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def stub_runs(notes: Path, mode: str, seconds: float, count: int) -> list[Run]:
    """Runs of the stub that save weights and note what they do."""
    options = {"notes": str(notes), "seconds": seconds, "fails_first": mode == "failed", "size": 1}
    return [stub_run("note", seed=seed, **options) for seed in range(count)]


def disturb(campaign: Campaign, kills: int, choose: random.Random, longest_s: float) -> Counter[str]:
    """Start two sweeps again and again and kill until `kills` are used up or all is done; then check."""
    campaign.prepare()
    said: Counter[str] = Counter()
    running: dict[int, int] = {}
    while sum(said.values()) < kills and len(campaign.kept) < len(campaign.runs):
        for number in range(2):
            if number not in running.values():
                running[campaign.start(number)] = number
        time.sleep(choose.uniform(0.0, longest_s))
        said[campaign.kill(list(running), choose)] += 1
        time.sleep(choose.uniform(0.0, longest_s / 4))
        for parent in list(running):
            if os.waitpid(parent, os.WNOHANG)[0]:
                del running[parent]
        campaign.look()
    for parent in running:
        send(parent, signal.SIGTERM)
        os.waitpid(parent, 0)
    campaign.finish()
    return said


def stub_campaign(kills: int, seed: int, folder: Path, count: int = 6) -> tuple[Counter[str], list[str]]:
    """Kill sweeps of stubs in one folder after another; return how often what was killed, and the faults."""
    choose, said, faults, round_ = random.Random(seed), Counter[str](), [], 0
    while sum(said.values()) < kills:
        mode, place = MODES[round_ % len(MODES)], folder / str(round_)
        place.mkdir()
        notes = place / "notes.txt"
        notes.touch()
        runs = stub_runs(notes, mode, choose.choice([0.0, 0.02, 0.1]), count)
        campaign = Campaign(place, runs, STUB, mode, notes)
        said += disturb(campaign, kills - sum(said.values()), choose, 0.6)
        faults += [f"round {round_}, {mode}: {fault}" for fault in campaign.faults]
        trouble = place / "trouble.txt"
        faults += [f"round {round_}, {mode}: {trouble.read_text()}"] if trouble.exists() else []
        round_ += 1
    return said, faults


def real_campaign(kills: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Do the same with the real worker and a tiny model."""
    from test_faults import tiny, write_inputs

    from harness.engine.process.child import WORKER

    os.environ |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    choose, said, faults, round_ = random.Random(seed), Counter[str](), [], 0
    write_inputs(folder)
    while sum(said.values()) < kills:
        mode, place = MODES[round_ % 2], folder / str(round_)
        place.mkdir()
        campaign = Campaign(place, [tiny(folder, seed=seed) for seed in range(3)], WORKER, mode)
        said += disturb(campaign, kills - sum(said.values()), choose, 12.0)
        faults += [f"round {round_}, {mode}: {fault}" for fault in campaign.faults]
        round_ += 1
    return said, faults


def main() -> int:
    """Print what was killed and what was wrong; the exit code is 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        carry_out = real_campaign if given.real else stub_campaign
        said, faults = carry_out(given.kills, given.seed, Path(folder))
    print(json.dumps(dict(sorted(said.items())), indent=1), f"{sum(said.values())} kills", sep="\n")
    print(*faults, f"{len(faults)} faults", sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
