"""The entry of the command line: a full disk, a closed pipe, Ctrl-C, letters that cannot be printed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cli import commands, main
from harness.files import ROOT

PROGRAM = [sys.executable, "-m", "harness.cli"]


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*PROGRAM, *arguments], cwd=ROOT, timeout=120, check=False, **given)


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr(commands, "app", app)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "Disk quota exceeded; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), 2, "/a/b: Read-only file system"),
        (OSError("no number at all"), 2, "no number at all"),
        (PermissionError(errno.EACCES, "Permission denied", "a\x1b[31m"), 2, "Permission denied"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, "stopped; the same command continues"),
        (SystemExit(130), 130, "stopped; the same command continues"),
        (SystemExit(1), 1, ""),
    ],
)
def test_each_end_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(monkeypatch, error) == code
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == bool(line)
    assert "\x1b" not in said


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_standard_output_is_one_line_and_a_full_standard_error_none() -> None:
    with FULL.open("wb") as full:
        out = process("methods", stdout=full)
        assert (out.returncode, out.stderr) == (
            2,
            b"lorebench: No space left on device; make room, then the same command continues\n",
        )
        both = process("run", "nosuchsuite", stdout=full, stderr=full)
    assert both.returncode == 2


def test_a_closed_pipe_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = process("methods", stdout=writing)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_what_an_encoding_lacks_is_replaced(encoding: str) -> None:
    found = process("paper", "welore", env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.decode(encoding)


#: The console script, which says when its entry listens: before that it is Python itself that starts.
START = """
import harness.cli.main as main, signal, sys
real = signal.signal

def told(*arguments):
    before = real(*arguments)
    print(".", end="", file=sys.stderr, flush=True)
    return before

signal.signal = told
main.main()
"""


@pytest.mark.parametrize("wait_s", [0.0, 0.15])
def test_ctrl_c_while_it_starts_is_one_line(wait_s: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", START, "methods"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    child.stderr.read(1)
    time.sleep(wait_s)
    child.send_signal(signal.SIGINT)
    said = child.stderr.read().lstrip(b".")
    assert (child.wait(60), said) in [(0, b""), (130, f"{main.STOPPED}\n".encode())]
