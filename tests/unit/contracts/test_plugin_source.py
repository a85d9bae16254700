"""Which files a plug-in consists of; the truth is what an import of it loads in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.plugin_source import source_files

FILES = {
    "mine.py": "import json, torch\nimport helper_a\nfrom helper_b import v\nfrom pack.inner import f\n",
    "helper_a.py": "import helper_c\n",
    "helper_b.py": "v = 3\n",
    "helper_c.py": "def late():\n    import helper_d\n",
    "helper_d.py": "",
    "unrelated.py": "",
    "pack/__init__.py": "from . import sibling\n",
    "pack/inner.py": "from .deep.leaf import g as f\nfrom harness.method import Method\n",
    "pack/sibling.py": "",
    "pack/deep/__init__.py": "",
    "pack/deep/leaf.py": "from ..other import g\n",
    "pack/other.py": "def g(): pass\n",
    "pack/unused.py": "",
}
LOADED = {"mine", "helper_a", "helper_b", "helper_c", "pack", "pack.inner", "pack.sibling", "pack.deep"}
LOADED |= {"pack.deep.leaf", "pack.other"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_they_are_what_importing_it_loads_and_what_it_may_load_later(folder: Path) -> None:
    script = (
        f"import sys, json; sys.path.insert(0, {str(folder)!r}); sys.modules['torch'] = json; import mine;"
        f"print(json.dumps([n for n, m in sys.modules.items() if (getattr(m, '__file__', None) or '')"
        f".startswith({str(folder)!r})]))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    assert set(json.loads(said)) == LOADED
    found = source_files("mine")
    assert found.keys() == LOADED | {"helper_d"}
    assert found["pack.deep.leaf"] == folder / "pack/deep/leaf.py"
    assert "mine" not in sys.modules  # nothing was imported


@pytest.mark.parametrize(
    ("line", "also"),
    [
        ("import importlib; importlib.import_module('unrelated')", {"unrelated"}),
        ("__import__('unrelated')", {"unrelated"}),
        ("import importlib, sys; importlib.import_module(sys.argv[0])", set(FILES) & {"unrelated.py"}),
        ("TABLE = 'ranks.json'", {"ranks.json"}),
        ("TABLE = 'tables/a.csv'", {"tables/a.csv"}),
        ("OTHER = '../outside.json'", set()),
        ("import nowhere_to_be_found", set()),
        ("this is no python", None),
    ],
)
def test_other_ways_to_load_code_and_data_count(line: str, also: set[str] | None, folder: Path) -> None:
    (folder / "mine.py").write_text(line + "\n")
    (folder / "ranks.json").write_text("{}")
    (folder / "tables").mkdir()
    (folder / "tables/a.csv").write_text("")
    (folder.parent / "outside.json").write_text("")
    found = set(source_files("mine"))
    if also is None:
        assert found == {"mine"}
    elif also == {"unrelated.py"}:  # by a computed name: whatever stands beside it
        assert {"mine", "unrelated", "helper_a", "helper_d"} <= found
    else:
        assert found == {"mine", *also}


@pytest.mark.parametrize("module", ["methods.lora", "json", "no_such_module_anywhere", "harness.method"])
def test_what_ships_is_no_plugin(module: str) -> None:
    assert not {name for name in source_files(module) if name.startswith(("methods", "harness", "no_such"))}


def test_an_installed_plugin_counts_itself_and_nothing_else_that_is_installed() -> None:
    found = source_files("typer.models")
    assert "typer.models" in found
    assert all(name.startswith("typer") for name in found)
