"""A worker that starts at once and does what the options of a run tell it to; no torch, no harness.

What it did is appended to `started.txt` in the cache folder, one line per run: run id and process id.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ENVIRONMENT = {
    **{"device": "stub", "cpu": "a CPU", "cpu_threads": 1, "system": "Linux", "python": "3.11.7"},
    "packages": {},
}


def resolve():
    request = json.loads(sys.stdin.readline())
    for run in request["runs"]:
        options = run["method"][0]["options"]
        if options.get("do") == "bad-option":
            print(json.dumps({"error": "method stub: unknown key 'rnak'; did you mean 'rank'?"}))
            return 2
        if options.get("do") == "bad-import":
            raise ImportError("no module named 'nowhere'")
        run["label"] = run["label"] or options.get("do", "ok")
        options.setdefault("size", 1)
    inputs = [hashes(run["method"][0]["options"]) for run in request["runs"]]
    print(json.dumps({"runs": request["runs"], "device": "stub", "machine": "stub-1", "inputs": inputs}))
    return 0


def hashes(options):
    """Hashes of the files that a run says it reads."""
    paths = map(Path, options.get("reads", ()))
    return {
        options.get("name_of_input", f"text {path.name}"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def die_with_the_parent():
    def watch():
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def note(job, options, finish):
    """Save weights and end well, with an entry before and after in the file of the option `notes`."""
    run_id = Path(job["folder"]).name
    notes = Path(options["notes"])

    def add(text):
        with notes.open("a") as file:
            file.write(text + "\n")

    add(f"start {run_id} {os.getpid()}")
    time.sleep(options["seconds"])
    nonce = f"{os.getpid()}-{time.time_ns()}"
    weights = Path(job["folder"]) / "weights"
    weights.mkdir()
    (weights / "nonce.txt").write_text(nonce)
    failed = options.get("fails_first") and f"end {run_id} " not in notes.read_text()
    finish("error" if failed else "ok", message=nonce)
    add(f"end {run_id} {nonce}")
    time.sleep(options["seconds"] / 4)


def score(record, value):
    """Note a perplexity and return how the run ends; a text is how it ends instead."""
    if isinstance(value, str):
        return value
    counts = {"nll_nats": 1.0, "tokens": 100, "windows": 1, "dropped_tokens": 0, "text": "stub"}
    record["quality"] = {"perplexity": {"validation": {"perplexity": value, **counts}}}
    return "ok"


def run(job):
    options = job["run"]["method"][0]["options"]
    record_path, cache = Path(job["folder"] + ".json"), Path(job["cache"])
    with (cache / "started.txt").open("a") as file:
        file.write(f"{record_path.stem} {os.getpid()}\n")
    record = json.loads(record_path.read_text())

    def finish(status, **outcome):
        record["outcome"] = {"status": status, "phase": options.get("phase", "train"), **outcome}
        record["time"] = {"wall_s": options.get("wall_s", 0.1)}
        record["environment"] = ENVIRONMENT
        half = record_path.with_suffix(".half")
        half.write_text(json.dumps(record))
        half.replace(record_path)

    print(
        json.dumps({"phase": options.get("phase", "train"), "step": 1, "steps": 2, "loss": 2.0}), flush=True
    )
    print("a line for the log", file=sys.stderr, flush=True)
    do = options.get("do", "ok")
    if "first_loss" in options:
        record["training"] = {"steps": 1, "tokens": 8, "first_loss": options["first_loss"]}
    if "perplexity" in options:
        do = score(record, options["perplexity"].get(repr(job["run"]["train"]["lr"]), 50.0))
    if do == "as read":
        do = Path(options["reads"][0]).read_text()
    if do == "hang":
        time.sleep(600)
    elif do == "ignore-sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(json.dumps({"phase": "export"}), flush=True)
        time.sleep(60)
    elif do == "answer-sigterm":
        signal.signal(signal.SIGTERM, lambda *_: (finish("error", message="terminated"), os._exit(0)))
        print(json.dumps({"phase": "evaluate"}), flush=True)
        time.sleep(600)
    elif do == "leave-children":
        child = subprocess.Popen(["sleep", "600"])
        (cache / "child.txt").write_text(str(child.pid))
        finish("ok")
    elif do == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "lose-record":
        record_path.unlink()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif do == "exit":
        print("\n".join(f"line {number}" for number in range(100)), file=sys.stderr, flush=True)
        return 3
    elif do == "bad-input":
        record["outcome"] = {"status": "interrupted", "phase": "load", "message": "text.txt: no such file"}
        record_path.write_text(json.dumps(record))
        print(json.dumps({"error": "text.txt: no such file", "input": options.get("input")}), flush=True)
        return 2
    elif do == "finish-then-hang":
        finish("ok")
        time.sleep(600)
    elif do == "babble":
        print("not json\n[1, 2]\n\x00", flush=True)
        finish("ok")
    elif do == "break":
        exec(options["code"], {"folder": Path(job["folder"]), "record": record_path, "shutil": shutil})
        return 1
    elif do == "flood":
        for file in (sys.stdout, sys.stderr):
            print(json.dumps({"phase": "train", "x": "y" * 5_000_000}), file=file, flush=True)
        return 1
    elif do == "note":
        note(job, options, finish)
    elif do == "slow":
        time.sleep(options["seconds"])
        finish("ok")
    else:
        finish(do, message="as asked")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "resolve":
        sys.exit(resolve())
    job = json.loads(Path(sys.argv[2]).read_text())
    if job["run"]["method"][0]["options"].get("do") != "ignore-sigterm":  # that one heeds nothing
        die_with_the_parent()
    sys.exit(run(job))
