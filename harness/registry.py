"""Names of what ships, methods, protocols, tasks and text: found by a string, imported only when used."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import re
import sys
from typing import Any

from harness.errors import UserError, nearest
from harness.files import ROOT, visible

#: Every method that ships: name -> "module:Class". Other packages add theirs by the entry-point
#: group `lorebench.methods`; a suite may also name "module:Class" directly.
REGISTRY: dict[str, str] = {
    "adarankgrad": "methods.adarankgrad:AdaRankGrad",
    "apollo": "methods.apollo:Apollo",
    "asvd": "methods.asvd:ASVD",
    "bolaco": "methods.bolaco:Bolaco",
    "compress": "methods.compress:Compress",
    "fira": "methods.fira:Fira",
    "full": "methods.full:Full",
    "galore": "methods.galore:GaLore",
    "int8": "methods.int8:Int8",
    "lisa": "methods.lisa:Lisa",
    "lora": "methods.lora:LoRA",
    "lorap": "methods.lorap:LoRAP",
    "loraprune": "methods.loraprune:LoRAPrune",
    "lord": "methods.lord:Lord",
    "lotr": "methods.lotr:LoTR",
    "lowrank": "methods.lowrank:LowRankPretraining",
    "lqlora": "methods.lqlora:LQLoRA",
    "optim": "methods.optim:AnyOptimizer",
    "owlore": "methods.owlore:OwLore",
    "peft": "methods.peft:Peft",
    "qgalore": "methods.qgalore:QGaLore",
    "qlora": "methods.qlora:QLoRA",
    "relora": "methods.relora:ReLoRA",
    "sltrain": "methods.sltrain:SLTrain",
    "svdllm": "methods.svdllm:SvdLlm",
    "uniform": "methods.uniform:Uniform",
    "velora": "methods.velora:VeLoRA",
    "welore": "methods.welore:WeLore",
}


#: Every perplexity protocol (harness/engine/quality/protocols.py).
PROTOCOLS = (
    *("world-a", "world-b", "world-a-validation", "world-b-validation", "heldout", "validation"),
    *("wikitext2-2048", "wikitext2-4096", "wikitext2-128", "c4-256", "c4-256-legacy", "c4-joined"),
)
ENTRY_POINTS = "lorebench.methods"
#: The text that ships: a module with `documents(world, split, count)` and WORLD_VERSION.
EMBEDDED_WORLD = "benchmarks.embedded.world"


def available() -> dict[str, str]:
    """Return all methods by name: those that ship and those of installed packages."""
    return {**_of_installed_packages(tuple(sys.path)), **REGISTRY}


@functools.cache
def _of_installed_packages(path: tuple[str, ...]) -> dict[str, str]:
    """Return the methods of packages on `path`, which is `sys.path`: cached, since reading them is slow."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def check_name(name: str) -> str:
    """Return "module:Class" for a method's name without importing it; UserError names the nearest ones."""
    if ":" in name:
        return name
    known = available()
    if name not in known:
        hint = nearest(name, known)
        own = "" if hint.endswith("?") else "; write one of your own as module:Class"
        raise UserError(f"unknown method {name!r}; {hint}{own}")
    return known[name]


def class_named(text: str) -> str:
    """Return "module:Class" for that or for "file.py:Class", a file below the folder of plug-ins."""
    module, _, name = text.rpartition(":")
    if module.endswith(".py"):
        module = module.removesuffix(".py").removeprefix("./").replace("/", ".")
    return f"{module}:{name}"


def embedded_world() -> Any:
    """Return the module that generates the text that ships."""
    return importlib.import_module(EMBEDDED_WORLD)


@functools.cache
def shipped_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that ship, and of their groups."""
    folders = (ROOT / "benchmarks" / "tasks", ROOT / "benchmarks" / "embedded" / "tasks")
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in visible(folder, "*.yaml")]
    return tuple(found[1] for text in texts for found in re.finditer(r"^(?:task|group): *(\w+)", text, re.M))


@functools.cache
def published_protocols() -> dict[str, str]:
    """Return the names of protocols here, by their names in papers."""
    file = ROOT / "benchmarks" / "papers" / "protocols.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
