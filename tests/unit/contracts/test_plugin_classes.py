"""What is said while a library is imported for a method."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.plugins import LOGS_AT_IMPORT, import_library

#: What bitsandbytes says at import on some CPUs, for two reasons, and something else.
NOISY = f"""
import logging

logger = logging.getLogger({LOGS_AT_IMPORT[0]!r})
for error in (ModuleNotFoundError("lacking", name="kernels"), RuntimeError("broken")):
    logger.warning({LOGS_AT_IMPORT[1]!r} + " from kernels-community: %s. Please install it", error)
logger.warning("something else")
"""


def test_a_line_on_a_package_that_nothing_needs_is_not_said_and_all_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "noisy_library.py").write_text(NOISY)
    monkeypatch.delitem(sys.modules, "noisy_library", raising=False)
    module = import_library("noisy_library")
    broken, other = (record.getMessage() for record in caplog.records)
    assert broken == f"{LOGS_AT_IMPORT[1]} from kernels-community: broken. Please install it"
    assert other == "something else"
    assert import_library("noisy_library") is module
    module.logger.warning(LOGS_AT_IMPORT[1] + "%s", ModuleNotFoundError(name="kernels"))
    assert len(caplog.records) == 3  # after the import everything is said
    del sys.modules["noisy_library"]


def test_a_library_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_library.py").write_text("import kernels_that_are_nowhere\n")
    with pytest.raises(ModuleNotFoundError, match="kernels_that_are_nowhere"):
        import_library("broken_library")


def test_the_line_is_that_of_the_installed_bitsandbytes() -> None:
    spec = find_spec("bitsandbytes")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder, *parts = Path(spec.submodule_search_locations[0]), *LOGS_AT_IMPORT[0].split(".")[1:]
    assert LOGS_AT_IMPORT[1] in folder.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
