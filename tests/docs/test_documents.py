"""What the documents name exists: files, links, nox sessions, commands, options and settings."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from harness import suite as suites
from harness.cli import commands as cli
from harness.cli.options import Selection
from harness.config import Run
from harness.registry import REGISTRY
from harness.tables.generated import DOCUMENTS as FILLED
from harness.tables.generated import MARKED
from tests.docs.sources import DOCUMENTS, PAGES, ROOT, document, files, functions

#: `lorebench ...` and `nox ...` at the start of a line of a block of shell commands, `\` continuing it.
SHELL = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
YAML = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: A file for GitHub among them.
WORKFLOW = re.compile(r"^on: ", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:)([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ADDRESS = re.compile(r"\]\(https?://[^)]*\)")
#: An option of a command.
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
QUOTED = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
#: The sessions that call lorebench, and with what before the arguments behind `--`.
RUNS = {"bench-welore": ("run", "welore"), "tune-welore": ("tune", "welore")}


def prose(name: str) -> str:
    return FENCED.sub("", document(name))


def sessions() -> set[str]:
    """The sessions of noxfile.py by the names that `nox -s` takes: those of its table and its functions."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    (table,) = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "MODULES"
    ]
    found = set(ast.literal_eval(table))
    for node in functions(tree):
        for mark in node.decorator_list:
            if ast.unparse(mark) == "nox.session":
                found.add(node.name)
            elif isinstance(mark, ast.Call) and ast.unparse(mark.func) == "nox.session":
                names = [k.value for k in mark.keywords if k.arg == "name"]
                found.add(ast.literal_eval(names[0]) if names else node.name)
    return found


def workflows(name: str) -> list[Any]:
    """The files for GitHub that a document shows, read."""
    return [yaml.safe_load(text) for text in YAML.findall(document(name)) if WORKFLOW.search(text)]


def workflow_commands(workflow: Any) -> list[str]:
    """The commands of its steps by their names on a path, without what the shell does with them."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines()]
    return [re.split(r" >> | \|\| ", line.removeprefix(".nox/shared/bin/"))[0] for line in lines]


def commands(name: str) -> Iterator[list[str]]:
    """Every shell command that a document shows, split into words, its comment left out."""
    text = document(name)
    shown = [line for block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    shown += [line for workflow in workflows(name) for line in workflow_commands(workflow)]
    shown += [quoted for quoted in QUOTED.findall(prose(name)) if " " in quoted]
    for line in shown:
        if line.lstrip("$ ").startswith(("lorebench ", "nox ")):
            words = shlex.split(line.lstrip("$ "), comments=True)
            yield [word for word in words if word not in ("...", "&")]


def lorebench(words: list[str]) -> list[str] | None:
    """The arguments of lorebench within a command; None where it is none or a session without a run."""
    if words[0] == "lorebench":
        return words[1:]
    session = words[words.index("-s") + 1] if "-s" in words else ""
    if session not in RUNS:
        return None
    return [*RUNS[session], *(words[words.index("--") + 1 :] if "--" in words else [])]


def lorebench_commands() -> dict[str, Any]:
    """The commands of the command line by name."""
    found: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    return found


def group_options() -> set[str]:
    """The options of `lorebench` itself."""
    return {option for item in typer.main.get_command(cli.app).params for option in item.opts}


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line understands; an unknown command or option is an error."""
    name, *rest = arguments
    found: dict[str, Any] = lorebench_commands()[name].make_context(name, rest).params
    return found


def chosen_runs(given: dict[str, Any]) -> tuple[Run, ...]:
    given = {**given, "rates": None}  # a file that only its reader has
    return Selection(**{field.name: given[field.name] for field in fields(Selection)}).load().runs


ALL_COMMANDS = [(name, words) for name in DOCUMENTS for words in commands(name)]
LOREBENCH = [arguments for _, words in ALL_COMMANDS if (arguments := lorebench(words))]


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(document("README.md").splitlines()) <= 150


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a page."""
    headings = HEADING.findall(FENCED.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_heading_stands_between_empty_lines(name: str) -> None:
    lines = ["", *prose(name).splitlines(), ""]
    headings = [number for number, line in enumerate(lines) if HEADING.match(line)]
    assert not [lines[number] for number in headings if lines[number - 1] or lines[number + 1]]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    """Links are relative to the page; mkdocs checks only those inside docs/."""
    wrong = []
    for target, anchor in LINK.findall(prose(name)):
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append((target, anchor))
    assert not wrong


def test_the_navigation_has_every_page_once() -> None:
    def pages(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            for content in entry.values():
                yield from [content] if isinstance(content, str) else pages(content)

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(f"docs/{page}" for page in pages(navigation)) == sorted(PAGES)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_that_is_named_exists(name: str) -> None:
    """A path with a placeholder such as <machine> or * stands for what a run writes."""
    top = {path.parts[0] for path in files()}
    wrong = [
        quoted
        for quoted in QUOTED.findall(document(name))
        if re.fullmatch(r"[\w./-]+", quoted) and "/" in quoted.rstrip("/") and quoted.split("/")[0] in top
        if not (ROOT / quoted).exists()
    ]
    assert not wrong


def test_every_nox_session_that_is_named_exists_and_every_one_is_explained() -> None:
    named = {
        session
        for _, words in ALL_COMMANDS
        if words[0] == "nox"
        for session in words[words.index("-s") + 1 : words.index("--") if "--" in words else None]
    }
    assert not named - sessions()
    explained = set(QUOTED.findall(document("CONTRIBUTING.md")))
    assert not {session for session in sessions() if f"nox -s {session}" not in explained}


def test_every_command_of_lorebench_has_a_section_with_an_example_and_all_its_options() -> None:
    shared, *sections = re.split(r"^## (?=[a-z]+$)", document("docs/commands.md"), flags=re.MULTILINE)
    found = {text.partition("\n")[0]: text for text in sections}
    assert list(found) == re.findall(r"`lorebench (\w+)`\]", shared)
    assert set(found) == set(lorebench_commands())
    known = set()
    for command, text in found.items():
        assert f"\nlorebench {command}" in text, f"no example of {command}"
        options = {option for item in lorebench_commands()[command].params for option in item.opts}
        options = {option for option in options if option.startswith("--")}
        assert not options - set(OPTION.findall(shared + text)), command
        known |= options
    assert set(OPTION.findall(document("docs/commands.md"))) == known | group_options() | {"--help"}


def test_every_suite_and_every_method_that_ships_is_listed() -> None:
    assert not set(suites.shipped_suites()) - set(QUOTED.findall(document("docs/suites.md")))
    assert not set(REGISTRY) - set(QUOTED.findall(document("docs/methods.md")))


@pytest.mark.parametrize("arguments", LOREBENCH, ids=" ".join)
def test_every_command_is_understood(arguments: list[str]) -> None:
    """The command exists with these options; where it runs a suite that ships, it chooses some runs."""
    if len(arguments) == 1:  # a command that is only mentioned
        assert arguments[0] in lorebench_commands().keys() | group_options()
        return
    given = parsed(arguments)
    if given.get("suite") == "welore" and "model" in given:
        assert chosen_runs(given)


def test_the_command_in_a_record_repeats_exactly_that_run() -> None:
    given = {"data": ["notes.txt"], "settings": ["train.steps=70"], "only": ["label=full"], "seed": [41, 42]}
    selection = Selection("welore", **given)
    chosen = selection.load()
    command = selection.rerun(chosen, "cpu")
    assert [run.seed for run in chosen.runs] == [41, 42]
    for run in chosen.runs:
        again = chosen_runs(parsed(shlex.split(command(run))[1:]))
        assert [other.run_id for other in again] == [run.run_id]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_suite_that_is_printed_loads(name: str, tmp_path: Path) -> None:
    for number, text in enumerate(YAML.findall(document(name))):
        if WORKFLOW.search(text):
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        assert suites.load(path).runs


def test_the_workflow_that_is_shown_checks_memory_and_speed() -> None:
    (workflow,) = workflows("docs/regressions.md")
    found = workflow_commands(workflow)
    assert [line for line in found if line.startswith(("nox", "lorebench"))] == [
        "nox -s gate",
        'lorebench ab "origin/$GITHUB_BASE_REF" HEAD alarms --format github --out ab.xml',
    ]


@pytest.mark.parametrize(
    ("code", "written", "passes"),
    [(0, True, True), (1, True, False), (2, True, True), (2, False, False), (130, False, False)],
)
def test_the_workflow_that_is_shown_passes_without_a_verdict_but_not_without_a_comparison(
    tmp_path: Path, code: int, written: bool, passes: bool
) -> None:
    """Its step in GitHub's shell, where the command only ends as it is told to."""
    (workflow,) = workflows("docs/regressions.md")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    (step,) = [step["run"] for step in steps if "--out ab.xml" in step.get("run", "")]
    command = tmp_path / ".nox" / "shared" / "bin" / "lorebench"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\n{'echo ok > ab.xml' if written else ''}\nexit {code}\n")
    command.chmod(0o755)
    variables = {**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    ended = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step], cwd=tmp_path, env=variables)
    assert (ended.returncode == 0) is passes


@pytest.mark.parametrize(
    ("name", "suites_shown"),
    [
        ("README.md", ["welore", "zoo"]),
        (
            "docs/results.md",
            [
                *("welore", "pretrain", "finetune", "related", "related_pretrain", "zoo", "compressed"),
                "pretrain_small",
            ],
        ),
    ],
)
def test_the_tables_of_suites_are_in_marked_places_that_are_filled(
    name: str, suites_shown: list[str]
) -> None:
    assert [found["suite"] for found in MARKED.finditer(document(name))] == suites_shown
    assert name in FILLED


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_no_table_of_results_is_typed_by_hand(name: str) -> None:
    """Rows of a table outside the generated part hold no decimal fraction but in code."""
    page = ADDRESS.sub("", QUOTED.sub("", MARKED.sub("", document(name))))
    assert not [line for line in page.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]


def test_ci_calls_sessions_that_exist() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    calls = [shlex.split(line) for line in lines if line.startswith("nox -s ")]
    called = {name for words in calls for name in words[2 : words.index("--") if "--" in words else None]}
    assert {"lint", "types", "docs", "tests"} <= called <= sessions()
