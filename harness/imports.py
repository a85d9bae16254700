"""Decide which code an import finds: ours, then Python's and what is installed, then plug-ins.

`python -m` and an empty entry of PYTHONPATH put the current folder first, where a file `queue.py` or
`torch.py` would run in place of the library, and a folder `methods` in place of ours. Here the folder of
plug-ins, the current one unless `PLUGINS` names another, comes last.

As a script, `python -P imports.py MODULE ARGUMENTS` runs one of our modules this way.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

#: The folder that holds `OURS`; as a script, this file cannot import it from harness/files.py.
ROOT = Path(__file__).resolve().parents[1]
OURS = ("harness", "methods", "benchmarks")
#: The variable that names the folder of plug-ins.
PLUGINS = "LOREBENCH_PLUGINS"


def command(module: str) -> tuple[str, ...]:
    """Return the start of a command that runs one of our modules; start it with `environment`."""
    return (sys.executable, "-P", str(Path(__file__).resolve()), module)


def environment() -> dict[str, str]:
    """Return the variables of a process of ours, with a PYTHONPATH that means the same in every folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(named_folders()), "PYTHONSAFEPATH": "1"}


def named_folders() -> list[str]:
    """Return the entries of PYTHONPATH that are absolute; the others mean another in every folder."""
    return [entry for entry in _entries() if Path(entry).is_absolute()]


def plugin_folder() -> Path:
    """Return the folder whose modules are found last."""
    return Path(os.environ.get(PLUGINS) or Path.cwd()).absolute()


def add_plugins() -> None:
    """Let modules in the folder of plug-ins be found, after all others."""
    if (folder := str(plugin_folder())) not in sys.path:
        sys.path.append(folder)


def secure() -> None:
    """Take `OURS` from beside this file, and entries of PYTHONPATH that are not absolute off the path."""
    named = named_folders()
    for entry in _entries():
        place = str(Path(entry).absolute())
        if entry not in named and place not in named and place in sys.path:
            sys.path.remove(place)
    if _OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, _OwnPackages)


def _entries() -> list[str]:
    given = os.environ.get("PYTHONPATH")
    return given.split(os.pathsep) if given else []


class _OwnPackages:
    """Finds our packages, whatever else has their names."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in OURS else None


if __name__ == "__main__":
    secure()
    sys.path.append(str(plugin_folder()))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
