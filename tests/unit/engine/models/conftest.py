"""A folder with a small model, and a copy of it to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.engine.models import checkpoint
from tests.support.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small LLaMA and its tokenizer, as transformers writes it; never changed."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(tiny_llama(), tiny_tokenizer(), folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "model"))
