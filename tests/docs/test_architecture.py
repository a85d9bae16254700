"""The rules of ARCHITECTURE.md that a machine can check: who knows whom, and how large things are."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter

import pytest

from harness.method import REGISTRY
from tests.docs.sources import Module, below, docstrings, document, functions, length, modules, of, reached

#: Methods named by a word of plain English; only a string that is exactly the name would mean them.
PLAIN_WORDS = {"full", "uniform"}
HEAVY = ("torch", "transformers", "lm_eval", "peft", "datasets", "safetensors", "tokenizers")
#: What starts, follows and reports runs must start at once and survive them, so it loads no torch.
LIGHT = (
    "harness.cli",
    "harness.config",
    "harness.errors",
    "harness.forecast",
    "harness.gating",
    "harness.method",
    "harness.mlflow_upload",
    "harness.options",
    "harness.planning",
    "harness.publishing",
    "harness.reporting",
    "harness.record",
    "harness.suite",
    "harness.tracking",
    "harness.validation",
    "harness.engine.capacity",
    "harness.engine.forecasts",
    "harness.engine.foresight",
    "harness.engine.refusals",
    "harness.engine.job",
    "harness.engine.process",
    "harness.engine.progress",
    "harness.engine.reporter",
    "harness.engine.runner",
    "harness.engine.worker",
    "harness.tables",
)
FOUNDATION = (
    "errors",
    "validation",
    "method",
    "config",
    "record",
    "suite",
    "factored",
    "spectrum",
    "forecast",
)
#: Who may import what, within the project; also inside functions.
MAY_IMPORT = {
    "methods": (
        "methods",
        *(f"harness.{name}" for name in ("method", "config", "errors", "factored", "spectrum")),
    ),
    "benchmarks.embedded": ("benchmarks.embedded",),
    **{f"harness.{name}": tuple(f"harness.{other}" for other in FOUNDATION) for name in FOUNDATION},
    "harness.tables": (
        "harness.tables",
        *(f"harness.{name}" for name in ("record", "suite", "errors", "validation")),
    ),
    "harness.engine": ("harness", "benchmarks.embedded.world"),
    "harness.cli": ("harness",),
    "harness.planning": ("harness",),
    "harness.publishing": ("harness",),
    "harness.reporting": ("harness",),
    "harness.gating": ("harness",),
    "harness.tracking": ("harness",),
    "harness.mlflow_upload": ("harness.tables", "harness.record", "harness.errors"),
    "harness.options": ("harness.config", "harness.errors", "harness.suite"),
}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if below(name, "harness", "methods", "benchmarks", "tests")}


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_imports_follow_the_arrows(importer: str) -> None:
    wrong = {
        f"{module.place} imports {name}"
        for module in of(importer)
        for name in ours(module.everything)
        if not below(name, *MAY_IMPORT[importer])
    }
    assert not wrong


def test_the_engine_knows_neither_tables_nor_the_command_line() -> None:
    for module in of("harness.engine"):
        assert not {name for name in module.everything if below(name, "harness.tables", "harness.cli")}


def test_the_harness_imports_no_method_and_no_test() -> None:
    for module in of("harness"):
        assert not {name for name in module.everything if below(name, "methods", "tests")}, module.place


def test_no_two_modules_import_each_other_however_indirectly() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done or name not in modules():
            return
        for other in sorted(modules()[name].everything):
            visit(other, (*path, name))
        done.add(name)

    for name in modules():
        visit(name, ())


@pytest.mark.parametrize("module", of(*LIGHT), ids=lambda module: module.name)
def test_what_the_parent_imports_loads_nothing_heavy(module: Module) -> None:
    assert not {name for name in reached(module) if below(name, *HEAVY)}


# -------------------------------------------------------------------------------------- method names
def names_in_code(module: Module) -> list[tuple[int, str, bool]]:
    """Identifiers, strings and comments with their lines, and whether each is a docstring or comment."""
    prose = {constant.lineno for constant in docstrings(module.tree)}
    source = module.path.read_text(encoding="utf-8")
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT):
            said = token.type == tokenize.COMMENT or token.start[0] in prose
            found.append((token.start[0], token.string, said))
    return found


def registry_lines(module: Module) -> set[int]:
    """The lines of the table of method names, the one place where they may stand."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "REGISTRY":
            assert node.end_lineno is not None
            return set(range(node.lineno, node.end_lineno + 1))
    return set()


@pytest.mark.parametrize("module", of("harness"), ids=lambda module: module.name)
def test_the_harness_names_no_method(module: Module) -> None:
    """A docstring or comment may cite the paper of a method as a source, with its number."""
    distinct = "|".join(map(re.escape, sorted(set(REGISTRY) - PLAIN_WORDS)))
    plain = "|".join(map(re.escape, sorted(PLAIN_WORDS)))
    mention = re.compile(rf"(?<![a-z])(?:{distinct})(?![a-z])", re.IGNORECASE)
    exact = re.compile(rf"[rbuf]*(['\"]+)(?:{plain}|{distinct})\1")
    allowed = registry_lines(module)
    wrong = [
        f"{module.place}:{line}: {text[:60]}"
        for line, text, said in names_in_code(module)
        if line not in allowed
        and not (said and "arXiv" in text)
        and (mention.search(text) or (not said and exact.fullmatch(text)))
    ]
    assert not wrong


# -------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(("package", "lines"), [("harness.engine", 250), ("methods", 150)])
def test_files_can_be_read_in_one_sitting(package: str, lines: int) -> None:
    sizes = {
        module.place: len(module.path.read_text(encoding="utf-8").splitlines()) for module in of(package)
    }
    assert not {place: size for place, size in sizes.items() if size > lines}


def test_functions_fit_on_a_page() -> None:
    long = {
        f"{module.place}:{node.lineno} {node.name}": length(node)
        for module in of("harness", "methods", "benchmarks")
        for node in functions(module.tree)
        if length(node) > 50
    }
    assert not long


# ---------------------------------------------------------------------------------------- the page
def test_the_architecture_names_every_module_of_the_harness() -> None:
    """Those that share a name, in several folders, as often as there are of them."""
    page = document("ARCHITECTURE.md")
    unnamed = [module for module in of("harness") if module.place not in page]
    counts = Counter(module.path.name for module in unnamed if module.path.name != "__init__.py")
    missing = {name: count for name, count in counts.items() if page.count(f"`{name}`") < count}
    assert not missing
