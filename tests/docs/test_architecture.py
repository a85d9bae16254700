"""The rules of ARCHITECTURE.md that a machine can check: who knows whom, and how large things are."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest

from harness.registry import REGISTRY
from tests.docs.sources import (
    ROOT,
    Module,
    below,
    docstrings,
    document,
    functions,
    length,
    modules,
    of,
    reached,
)

#: Methods named by a word of English or by a dtype; only a string that is exactly the name would mean them.
PLAIN_WORDS = {"full", "int8", "optim", "uniform"}
#: A method named as the stage that it is mostly used in.
STAGES = {"compress"}
#: Methods named after the package that they adapt, whose version records hold.
PACKAGES = {"peft"}
HEAVY = ("torch", "transformers", "lm_eval", "peft", "datasets", "safetensors", "tokenizers")
#: What starts, follows and reports runs must start at once and survive them, so it loads no torch. Of the
#: command line, only the export of a model needs torch, and imports it when it is called.
LIGHT = (
    "harness.cli",
    "harness.ab",
    "harness.config",
    "harness.devices",
    "harness.digests",
    "harness.endings",
    "harness.errors",
    "harness.files",
    "harness.forecast",
    "harness.git",
    "harness.identity",
    "harness.imports",
    "harness.inputs",
    "harness.merging",
    "harness.method",
    "harness.plugin_source",
    "harness.plugins",
    "harness.rates",
    "harness.record",
    "harness.record_index",
    "harness.registry",
    "harness.schedule",
    "harness.series",
    "harness.speed_forecast",
    "harness.suite",
    "harness.tuning",
    "harness.validation",
    "harness.tables",
    "harness.engine.process",
    "harness.engine.forecast.admission",
    "harness.engine.forecast.cache",
    "harness.engine.forecast.capacity",
    "harness.engine.forecast.client",
    "harness.engine.loggers",
    "harness.engine.resume.about",
    "harness.engine.resume.names",
    "harness.engine.run.record_writer",
    "harness.engine.sweep",
    "harness.engine.runner",
    "harness.engine.worker",
)
VOCABULARY = tuple(
    f"harness.{name}"
    for name in (
        *("credentials", "digests", "endings", "errors", "factored", "files", "git", "identity", "imports"),
        *("plain_text", "plugin_source", "reachable", "spectrum", "strict_json", "strict_yaml", "validation"),
    )
)
CONTRACTS = tuple(
    f"harness.{name}"
    for name in (
        *("config", "devices", "forecast", "inputs", "merging", "method", "no_effect", "plugins", "rates"),
        *("record", "record_index", "registry", "schedule", "series", "speed_forecast", "suite", "tuning"),
    )
)
BASEMENT = (*VOCABULARY, *CONTRACTS)


def engine(*names: str) -> tuple[str, ...]:
    """What a folder of the engine may import: the contracts and these parts of the engine."""
    return (*BASEMENT, *(f"harness.engine.{name}" for name in names))


def tables(*names: str) -> tuple[str, ...]:
    """What a part of the tables may import: the contracts and these parts of the tables."""
    return (*BASEMENT, *(f"harness.tables.{name}" for name in names))


SHARED_TABLES = ("records", "format", "layout", "statistics", "aggregate", "curves")
#: Who may import what within the project, one rule a folder; imports inside functions count, too.
MAY_IMPORT = {
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    **dict.fromkeys(CONTRACTS, BASEMENT),
    "harness.engine.resume": engine("resume"),
    "harness.engine.process": engine("process", "resume.names"),
    "harness.engine.models": engine("models"),
    "harness.engine.data": engine("data"),
    "harness.engine.measure": engine("measure"),
    "harness.engine.quality": engine("quality", "data"),
    "harness.engine.contract": engine("contract", "forecast", "run", "resume", "models", "data", "measure"),
    "harness.engine.run": (
        "harness",
        *engine("run", "resume", "contract.members", "process.job", "process.progress_file"),
        *engine("models", "data", "measure", "quality"),
    ),
    "harness.engine.forecast": engine(
        *("forecast", "contract.members", "contract.tiny", "run", "process", "models", "data", "measure"),
        "quality.perplexity",
    ),
    "harness.engine.sweep": engine("sweep", "process", "resume.names", "resume.about", "loggers"),
    "harness.engine.loggers": engine("loggers"),
    "harness.engine.runner": engine("sweep", "process", "loggers", "forecast.admission"),
    "harness.engine.worker": engine("process", "run", "forecast", "quality", "contract", "measure"),
    **{f"harness.tables.{name}": tables(*SHARED_TABLES) for name in SHARED_TABLES},
    "harness.tables.frames": tables("records"),
    "harness.tables.report": tables("report", *SHARED_TABLES),
    "harness.tables.plan": tables("plan", "report", *SHARED_TABLES),
    "harness.tables.compare": tables("compare", *SHARED_TABLES),
    "harness.tables.history": tables("history", "compare", "report", *SHARED_TABLES),
    "harness.tables.papers": tables("papers", "report", *SHARED_TABLES),
    "harness.tables.page": tables("page", "papers", "history", "report", *SHARED_TABLES),
    "harness.tables.generated": tables("report", "papers", "records"),
    "harness.ab": (
        "harness",
        "harness.ab",
        "harness.tables.compare",
        *engine("process", "sweep", "measure.lockstep"),
    ),
    "harness.cli": ("harness",),
    "methods": (
        "methods",
        *(f"harness.{name}" for name in ("method", "config", "errors", "factored", "files", "spectrum")),
        *(f"harness.{name}" for name in ("plugins", "reachable", "registry", "strict_yaml")),
    ),
    "benchmarks.embedded": ("benchmarks.embedded", "harness.files"),
}
#: Folders that may import all of the harness: nothing imports them but what stands beside them.
ABOVE = ("benchmarks.bpe", "benchmarks.papers", "benchmarks.studies", "benchmarks.tasks")


def ours(names: set[str]) -> set[str]:
    return {name for name in names if below(name, "harness", "methods", "benchmarks", "tests")}


def against_the_arrows(importer: str, allowed: tuple[str, ...]) -> set[str]:
    """Return the imports that a rule does not allow; `harness` among others is the package itself."""
    everything = allowed == ("harness",)
    return {
        f"{module.place} imports {name}"
        for module in of(importer)
        for name in ours(module.everything)
        if not (
            name in allowed or below(name, *(each for each in allowed if everything or each != "harness"))
        )
    }


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_imports_follow_the_arrows(importer: str) -> None:
    assert not against_the_arrows(importer, MAY_IMPORT[importer])


def test_a_broken_rule_is_seen() -> None:
    """The lower floor of an arrow that is there, turned around: the test above would have failed."""
    assert against_the_arrows("harness.engine.run", engine("run"))
    assert against_the_arrows("harness.ab", CONTRACTS)
    assert against_the_arrows("methods", ("methods",))


def test_every_module_stands_under_a_rule() -> None:
    packages = ("harness", "harness.engine", "harness.tables", "benchmarks")
    rules = (*MAY_IMPORT, *ABOVE)
    assert not [name for name in modules() if name not in packages and not below(name, *rules)]


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
    distinct = "|".join(map(re.escape, sorted(set(REGISTRY) - PLAIN_WORDS - STAGES - PACKAGES)))
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


# --------------------------------------------------------------------------------------------- JSON
#: What is sent between processes of one command, which are all Python.
EVENTS = ("harness.engine.run.record_writer", "harness.engine.worker")
WRITERS = ("write", "write_text", "replace", "print", "echo")


def loose_json(tree: ast.AST) -> set[int]:
    """The lines of calls of `json.dumps` whose text is written, as a line or a file, and may hold NaN."""
    written: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and ast.unparse(node.right) in (r"'\n'", r"b'\n'"):
            written.append(node.left)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in WRITERS:
            written += node.args
    return {
        node.lineno
        for node in written
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "json.dumps"
        and "allow_nan=False" not in map(ast.unparse, node.keywords)
    }


def test_json_that_is_written_has_no_numbers_that_json_lacks() -> None:
    """`strict_json.text` writes it; elsewhere `json.dumps` makes keys, hashes and words of a message."""
    found = {module.name: loose_json(module.tree) for module in of("harness", "methods", "benchmarks")}
    assert {name for name, lines in found.items() if lines} == set(EVENTS)


# -------------------------------------------------------------------------------------------- sizes
def test_a_method_can_be_read_in_one_sitting() -> None:
    methods = [module for module in of("methods") if not below(module.name, "methods.parts")]
    sizes = {module.place: len(module.path.read_text(encoding="utf-8").splitlines()) for module in methods}
    assert len(sizes) > 5
    assert not {place: size for place, size in sizes.items() if size > 150}


def test_functions_fit_on_a_page() -> None:
    long = {
        f"{module.place}:{node.lineno} {node.name}": length(node)
        for module in of("harness", "methods", "benchmarks")
        for node in functions(module.tree)
        if length(node) > 50
    }
    assert not long


# ---------------------------------------------------------------------------------------- the page
def test_the_architecture_names_every_room() -> None:
    page = document("ARCHITECTURE.md")
    found = [
        each for each in of("harness", "methods", "benchmarks") if not below(each.name, "benchmarks.studies")
    ]
    rooms = {module.path.parent.relative_to(ROOT).as_posix() for module in found}
    assert not {room for room in rooms if f"`{room}/`" not in page}
