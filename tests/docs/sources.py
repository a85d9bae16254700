"""The project read as text and as syntax trees: what the tests of this folder ask about it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("harness", "methods", "benchmarks")
PAGES = tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *PAGES)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """One module: `at_import` is what importing it imports, `everything` adds what its functions import.

    Imports for the type checker alone are in neither: nothing imports them when the program runs.
    """

    name: str
    path: Path
    tree: ast.Module
    at_import: set[str] = field(default_factory=set)
    everything: set[str] = field(default_factory=set)

    @property
    def place(self) -> str:
        """The path inside the project, for messages."""
        return self.path.relative_to(ROOT).as_posix()


@cache
def modules() -> dict[str, Module]:
    """All modules of the packages by their dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    for module in found.values():
        for node, late in _imports(module.tree):
            names = _imported(node, set(found))
            module.everything |= names
            module.at_import |= set() if late else names
    return found


def of(*prefixes: str) -> list[Module]:
    """The modules whose names are one of these or lie below one."""
    return [module for name, module in modules().items() if below(name, *prefixes)]


def below(name: str, *prefixes: str) -> bool:
    """Whether a dotted name is one of these or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _imports(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement that can run, and whether it runs later than the import of its module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, late
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other, late)
        elif not isinstance(child, ast.expr):
            yield from _imports(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _imported(node: ast.Import | ast.ImportFrom, known: set[str]) -> set[str]:
    """The modules that a statement names: `from harness import record` is harness.record."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.level == 0, "the project writes all imports in full"
    module = node.module or ""
    whole = {f"{module}.{alias.name}" for alias in node.names}
    return (whole & known) | ({module} if whole - known else set())


def reached(module: Module) -> set[str]:
    """All that importing a module imports, through the modules of this project."""
    known = modules()
    found: set[str] = set()
    todo = [module.name]
    while todo:
        name = todo.pop()
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
        for other in ({name} | parents) - found:
            found.add(other)
            todo += known[other].at_import if other in known else ()
    return found - {module.name}


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods of a tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def length(node: Function) -> int:
    """Lines of a function from its `def`, docstring included."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every docstring, those below a class attribute included: all strings that stand alone."""
    for node in ast.walk(tree):
        alone = node.value if isinstance(node, ast.Expr) else None
        if isinstance(alone, ast.Constant) and isinstance(alone.value, str):
            yield alone


@cache
def files() -> tuple[Path, ...]:
    """The files of the project: what git has or would add, else all that is no by-product."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    answer = subprocess.run(command, capture_output=True, check=False)
    if answer.returncode == 0 and answer.stdout:
        names = [Path(name) for name in answer.stdout.decode().split("\0") if name]
    else:
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        hidden = [any(part.startswith(".") and part != ".ci" for part in name.parts) for name in names]
        names = [
            name
            for name, skip in zip(names, hidden, strict=True)
            if not skip and "__pycache__" not in name.parts
        ]
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def texts() -> Iterator[tuple[Path, str]]:
    """Every file of the project that is text."""
    for name in files():
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def document(name: str) -> str:
    """The text of one of the documents."""
    return (ROOT / name).read_text(encoding="utf-8")


def block(heading: str, language: str) -> str:
    """The only block of a language below a heading of `docs/methods.md`, up to the next heading."""
    _, below = document("docs/methods.md").split(f"\n{heading}\n")
    section = re.split(r"^#{2,3} ", below, maxsplit=1, flags=re.MULTILINE)[0]
    [found] = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return str(found)
