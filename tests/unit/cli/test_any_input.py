"""Whatever stands in a suite, a setting or a command line ends in runs or in one line, never in a traceback.

`python -m tests.unit.cli.test_any_input COUNT` tries as many mutated suites and settings as wanted.
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from harness import suite
from harness.cli import main as cli
from harness.config import Run
from harness.engine import runner
from harness.engine.sweep import resolution
from harness.errors import UserError

#: What is put in place of values and between characters.
ODD = (
    "0",
    "-1",
    "010",
    "1e999",
    "9" * 5000,
    "0x_",
    "1_000",
    ".nan",
    ".inf",
    "~",
    "null",
    "yes",
    "''",
    '""',
    '"\\0"',
    '"\\ud800"',
    "[]",
    "{}",
    "[[]]",
    "{a: 1}",
    "&a [*a]",
    "*a",
    "!!float x",
    "!!set {a}",
    "!replace {}",
    "!replace 1",
    "<<: 1",
    "2001-13-45",
    "a: b: c",
    "[" * 100,
    "{" * 100,
    "- - -",
    "? x",
    "|",
    ">-",
    "%TAG",
    "---",
    "...",
    "\t",
    "\0",
    "\x1b",
    "\x85",
    "\u2028",
    "🙂",
    "é" * 300,
    "../..",
    "~nosuchuser",
    "x" * 5000,
    "a/b/c",
    "module:Class",
    ":",
    "::",
    "@",
    "full",
    "lora",
    "embedded",
    "files",
    "random",
    "hub",
    "shape",
    "nano",
    "true",
    "False",
    "None",
    "{source: files}",
    "{source: [a]}",
    "{source: {a: b}}",
    "[full, [lora]]",
    "{full: 1}",
    "{name: full, options: []}",
    "{1: 2}",
    "[1, [2]]",
)
KEYS = (
    "suite",
    "question",
    "baseline",
    "base",
    "matrix",
    "rows",
    "method",
    "seed",
    "repeat",
    "label",
    "save_weights",
    "tuning",
    "model",
    "data",
    "train",
    "evaluate",
    "train.lr",
    "train.steps",
    "train.betas",
    "train.refresh_at",
    "train.warmup",
    "data.seq_len",
    "data.source",
    "data.paths",
    "data.separator",
    "model.source",
    "model.id",
    "model.name",
    "evaluate.tasks",
    "evaluate.perplexity",
    "evaluate.limit",
    "method.lora.rank",
    "train.lr + seed",
    "a.b.c",
    "",
    ".",
    "x..y",
    "<<",
    "1",
    "~",
)
SUITE = """\
suite: s
baseline: full
base: &base
  model: {source: shape, name: nano}
  data: {source: random, seq_len: 16}
  train: {stage: pretrain, steps: 8, batch: 2, betas: [0.9, 0.99]}
  evaluate: {perplexity: [], tasks: []}
matrix:
  seed: [0, 1]
  train.lr + repeat: [[0.1, 0], [0.2, 1]]
rows:
  - {label: full, method: full}
  - {label: low rank, method: {lora: {rank: 2}}, train.stage: finetune, save_weights: true}
"""


def mutated(text: str, random_: random.Random) -> str:
    """Return a text with one to four parts of it replaced, repeated, moved or removed."""
    for _ in range(random_.randint(1, 4)):
        lines = text.splitlines(keepends=True) or [""]
        at = random_.randrange(len(text) + 1)
        line = random_.randrange(len(lines))
        kind = random_.randrange(8)
        if kind == 0:
            text = text[:at] + random_.choice(ODD) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + random_.randint(1, 9) :]
        elif kind == 2:
            lines.insert(line, random_.choice(lines))
            text = "".join(lines)
        elif kind == 3:
            lines.insert(
                line, "  " * random_.randrange(3) + f"{random_.choice(KEYS)}: {random_.choice(ODD)}\n"
            )
            text = "".join(lines)
        elif kind == 4:
            del lines[line]
            text = "".join(lines)
        elif kind == 5:
            lines[line] = lines[line].partition(":")[0] + f": {random_.choice(ODD)}\n"
            text = "".join(lines)
        elif kind == 6:
            text = text.replace(
                random_.choice(("full", "lora", "0", "seed", "train", "shape")), random_.choice(ODD), 1
            )
        else:
            text = (
                text[:at]
                + chr(random_.choice((0, 9, 27, 34, 39, 58, 91, 123, 0xFEFF, 0xFFFF, 0x1F642)))
                + text[at:]
            )
    return text


def tried(count: int, seed: int, folder: Path) -> Counter[str]:
    """Load mutated suites with mutated settings and count how each ended; raise for a wrong end."""
    random_, path, ends = random.Random(seed), folder / "s.yaml", Counter[str]()
    for _ in range(count):
        content = mutated(SUITE, random_) if random_.random() < 0.6 else SUITE
        settings = [
            mutated(f"{random_.choice(KEYS)}={random_.choice(ODD)}", random_) if random_.random() < 0.3
            else f"{random_.choice(KEYS)}={random_.choice(ODD)}"
            for _ in range(random_.choice((0, 1, 1, 2)))
        ]  # fmt: skip
        path.write_bytes(content.encode(errors="replace"))
        try:
            found = suite.load(path, [suite.parse_override(text) for text in settings])
            if settings:
                found.only([random_.choice(settings)])
            assert all(
                Run.model_validate(run.model_dump(mode="json")).run_id == run.run_id for run in found.runs
            )
            ends["runs"] += 1
        except UserError as error:
            text = str(error)
            assert "\n" not in text.replace(str(path), ""), (content, settings, text)
            assert len(text) < 1500, (content, settings, text)
            assert str(path) in text or text.startswith("--"), (content, settings, text)
            ends["one line"] += 1
        except Exception as error:
            raise AssertionError(f"{content!r} {settings!r}") from error
    return ends


def test_a_mutated_suite_ends_in_runs_or_in_one_line(tmp_path: Path) -> None:
    ends = tried(250, 0, tmp_path)
    assert ends["runs"] > 10
    assert ends["one line"] > 100


# -------------------------------------------------------------------------------------------- command lines
def lines(folder: Path, own: str) -> Iterator[list[str]]:
    """Yield wrong and odd command lines of every command."""
    (folder / "text.txt").write_text("words " * 50)
    (folder / "list.json").write_text("[1]")
    (folder / "nul.json").write_bytes(b"\0\xff")
    files = [str(folder), str(folder / "list.json"), str(folder / "nul.json"), "/dev/null", "/proc/self/mem"]
    odd = [*files, "", " ", "~nosuchuser/x", "x" * 5000, "**", "*", "[", "../..", "a\0b", "\udcff", "-", "--"]
    odd += ["https://u:PASS@h/x", "🙂", "%s%n"]
    for text in odd:
        yield ["report", text]
        yield ["report", own, "--results", text]
        yield ["report", own, "--model", text]
        yield ["report", own, "--data", text]
        yield ["plan", own, "--ranks", text]
        yield ["plan", own, "--data", text]
        yield ["export", text, str(folder / "out")]
        yield ["export", "0123", str(folder / "out"), "--results", text]
        yield ["paper", text]
        yield ["paper", "galore", "--table", text]
        yield ["gate", text, str(folder)]
        yield ["gate", str(folder), text]
        yield ["history", text]
        yield ["history", "welore", "--results", text]
        yield ["history", "welore", "--only", text]
        yield ["run", text]
        yield ["run", own, "--only", text]
        yield ["run", own, "--set", text]
        yield ["run", own, "--seed", text]
        yield ["run", own, "--budget", text]
        yield ["plan", own, "--device-gib", text]
        yield [text]
    yield from (
        [],
        ["nothing"],
        ["run"],
        ["gate"],
        ["export", "x"],
        ["ab", "a"],
        ["history"],
        ["paper"],
        ["methods", "x"],
    )
    for command in ("run", "plan", "report"):
        for text in ODD:
            yield [command, own, "--set", f"train.lr={text}"]
    for option in ("--write", "--baselines --control x", "--control x", "--format x", "--out /nowhere/x"):
        yield ["gate", *option.split(), str(folder), str(folder)]
    for option in (
        "--repeats 0",
        "--repeats x",
        "--control nobody",
        "--python-a /nowhere",
        "--repository /nowhere",
    ):
        yield ["ab", "a", "b", own, *option.split()]
    yield from (
        ["ab", "a", "b", own, "--set", "repeat=1"],
        ["ab", "a", "b", "none"],
        ["history", own, "--experiment", "x"],
    )
    yield from (["plan", own, "--max-batch"], ["plan", own, "--device-gib", "1", "--reserve-gib", "2"])
    yield from (
        ["paper", "all", "--table", "1"],
        ["paper", "errata", "--table", "1"],
        ["export", "a", "b", "--format", "x"],
    )


def ended(arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code of a command within this process, and what it wrote to standard error."""
    out, err = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", ["lorebench", *arguments])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, err.getvalue()


def as_they_are(
    runs: Sequence[Run], device: str = "auto", command: object = (), **reads: object
) -> resolution.Plan:
    """Stand for a worker that finds nothing wrong."""
    return resolution.Plan(tuple(runs), "cpu", "machine")


def wrong_ends(each: Callable[[], Iterator[list[str]]]) -> Iterator[str]:
    """Yield command lines that did not end as they should: 0, or 2 with one line."""

    def nothing_runs(*_: Any) -> runner.Sweep:
        return runner.Sweep(Path())

    asked = "harness.engine.forecast.client.ForecastClient.ask"
    for arguments in each():
        with (
            patch.object(resolution, "resolve", as_they_are),
            patch.object(runner, "sweep", nothing_runs),
            patch(asked, side_effect=UserError("no forecast")),
        ):
            try:
                code, said = ended(arguments)
            except BaseException:
                yield f"{arguments}: {traceback.format_exc()}"
                continue
        one_line = said.startswith("lorebench: ") and said.count("\n") == 1 and len(said) < 2000
        if code not in (0, 2) or (code == 2 and arguments and not one_line) or "PASS" in said:
            yield f"{arguments}: {code} {said}"


def test_an_odd_command_line_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.yaml").write_text(SUITE)
    chosen = random.Random(0).sample(list(lines(tmp_path, "own.yaml")), 40)
    assert not list(wrong_ends(lambda: iter(chosen)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        print(tried(int(sys.argv[1]), 1, Path(name)))
        (Path(name) / "own.yaml").write_text(SUITE)
        everything = list(lines(Path(name), "own.yaml"))
        print(len(everything), "command lines")
        for wrong in wrong_ends(lambda: iter(everything)):
            print(wrong[:60], "...", wrong[-900:])
