"""What holds for every file of the project: portable, complete, pinned."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import suite as suites
from tests.docs.sources import PACKAGES, ROOT, modules, texts

#: A home or working folder of some machine; what the system itself has, such as /proc, is portable enough.
MACHINE_PATH = re.compile(r"(?<![\w.:/<{-])(?:/(?:home|root|Users|work|mnt|tmp|opt)/\w|[A-Z]:\\Users)")
#: Access tokens and private keys, by the marks that their makers gave them.
SECRET = re.compile(r"\b(?:hf|ghp|gho|ghs|sk)_[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KE[Y]|AKIA[0-9A-Z]{16}")
UNFINISHED = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")


@pytest.mark.parametrize(
    "forbidden", [MACHINE_PATH, SECRET, UNFINISHED], ids=["path", "secret", "unfinished"]
)
def test_no_file_holds_what_belongs_to_one_machine_or_one_day(forbidden: re.Pattern[str]) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert not found


def test_the_patterns_see_what_they_are_for() -> None:
    assert MACHINE_PATH.search('open("/' + 'home/someone/x.txt")')
    assert not MACHINE_PATH.search('Path("/proc/cpuinfo"), "https://example.org/home/page", runs/tmp/x')
    assert SECRET.search("hf" + "_" + "a" * 24)


# ------------------------------------------------------------------------------------- dependencies
def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return content


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in pairs}


def requirements() -> list[Requirement]:
    """All dependencies that the nox environment installs: `.[dev]` with the extras that it includes."""
    extras = project()["optional-dependencies"]
    dev = [Requirement(text) for text in extras["dev"]]
    own = [requirement for requirement in dev if requirement.name == project()["name"]]
    included = [text for requirement in own for extra in sorted(requirement.extras) for text in extras[extra]]
    found = [*dev, *map(Requirement, [*project()["dependencies"], *included])]
    return [requirement for requirement in found if requirement.name != project()["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, "not pinned in constraints.txt"
    assert requirement.specifier.contains(version, prereleases=True)


def test_pins_are_exact_and_without_doubles() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))
    assert len(set(names)) == len(names)


def test_every_package_that_is_imported_is_a_dependency() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    imported = {name.split(".")[0] for module in modules().values() for name in module.everything}
    foreign = imported - set(sys.stdlib_module_names) - set(PACKAGES) - {"__future__"}
    missing = {
        name for name in foreign if not {canonicalize_name(p) for p in providers.get(name, [name])} & declared
    }
    assert not missing


# ---------------------------------------------------------------------------------------------- YAML
def test_every_yaml_file_is_a_suite_that_loads_or_a_task_a_paper_or_a_device() -> None:
    others, site = (
        ("benchmarks/embedded/tasks", "benchmarks/tasks", "benchmarks/papers", "benchmarks/devices"),
        [Path("mkdocs.yml")],
    )
    shipped = {path.relative_to(ROOT) for path in suites.shipped_suites().values()}
    for name, _ in texts():
        if name.suffix in (".yaml", ".yml") and name.parent.as_posix() not in others and name not in site:
            assert name in shipped, f"{name} is loaded by no test"
            found = suites.load(ROOT / name)
            assert found.name == name.stem, "its records would lie under a name that no suite has"
