"""A package `trackio` that notes what it is told: for tests of loggers in a process of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CODE = """
import json, os, time
WAY = os.environ.get("FAKE_TRACKIO", "")
if WAY == "broken":
    raise RuntimeError("half installed")

def note(*call):
    with open(os.environ["FAKE_TRACKIO_FILE"], "a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step):
        if WAY == "hangs":
            time.sleep(600)
        if WAY == "dies":
            os._exit(3)
        if WAY == "fails":
            raise OSError(28, "No space left on device")
        note("log", values, step)

    def finish(self):
        note("finish")

def init(**given):
    print("a library talks")
    note("init", given)
    return Run()
"""


def installed(folder: Path, way: str = "") -> dict[str, str]:
    """Write the package into a folder, and return the variables with which a process finds it."""
    package = folder / "fake"
    package.mkdir(exist_ok=True)
    (package / "trackio.py").write_text(CODE)
    about = package / "trackio-1.0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 1.0\n")
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "FAKE_TRACKIO": way, "FAKE_TRACKIO_FILE": str(folder / "calls.jsonl")}


def calls(folder: Path) -> list[Any]:
    """What the package was told."""
    file = folder / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
