"""A tokenizer learnt from a suite's own training text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from benchmarks import bpe

TRAINED_ON = "the cat and the hat and the bat\n" * 40
HELD_OUT = "zyxwvutsrq " * 400


def _suite(folder: Path, **model: object) -> str:
    (folder / "a.txt").write_text(TRAINED_ON)
    (folder / "b.txt").write_text(HELD_OUT)
    paths = [str(folder / name) for name in ("a.txt", "b.txt")]
    content = {
        "suite": "own",
        "base": {
            "model": {"source": "shape", "name": "nano", "vocab": 512, **model},
            "data": {"source": "files", "paths": paths, "holdout": 0.4},
            "method": "full",
        },
    }
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that so little text can yield."""
    monkeypatch.setattr(bpe, "SMALLEST", 260)


def test_pieces_come_from_the_training_text_alone(tmp_path: Path, small: None) -> None:
    folder = tmp_path / "tokenizer"
    said = bpe.for_suite(_suite(tmp_path, vocab=266, tokenizer=str(folder)))
    assert said == f"{folder}: 266 pieces from 1 documents"
    pieces = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert "Ġthe" in pieces
    assert not any(len(piece) > 1 and piece in HELD_OUT for piece in pieces)


def test_the_same_text_gives_the_same_tokenizer_and_its_marks_are_those_of_llama(
    tmp_path: Path, small: None
) -> None:
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        bpe.for_suite(_suite(tmp_path, vocab=266, tokenizer=str(folder)))
        found.append((folder / "tokenizer.json").read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
        text = "the lazy fox, été\n"
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ({}, (), "model.tokenizer"),
        ({"tokenizer": "t", "vocab": 100}, (), "model.vocab 100"),
        ({"tokenizer": "t", "vocab": 4096}, (), "pieces; give more text"),
        ({"tokenizer": "t"}, ("data={source: random}",), "no row reads text"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: dict[str, object],
    settings: tuple[str, ...],
    said: str,
) -> None:
    arguments = [_suite(tmp_path, **model), *(f"--set={item}" for item in settings)]
    assert bpe.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
