"""Weights are written whole or not at all, and what was measured outlives a disk that is full."""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerFast

from harness import record
from harness.config import MethodChoice, Run
from harness.engine.models import checkpoint
from harness.engine.models.export import export_run
from harness.engine.run.phases import RunInProgress
from harness.errors import UserError
from tests.support.small_disk import small_disk
from tests.support.tiny import logits, tiny_llama, tiny_tokenizer
from tests.unit.engine.models.test_models import factor_some


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the last files of a model are written."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", refuse)


def of_run(folder: Path, **settings: Any) -> Any:
    """As much of a run as its phases of loading and saving look at."""
    run: Any = RunInProgress.__new__(RunInProgress)
    run.model, run.tokenizer = tiny_llama(), tiny_tokenizer()
    run.methods = [SimpleNamespace(export=lambda model: model)]
    run.job, run.record = SimpleNamespace(folder=folder), SimpleNamespace(warnings=[])
    run.run = Run(method=(MethodChoice(name="full"),), **settings)
    return run


def test_weights_that_cannot_be_written_leave_a_warning_and_no_half_of_them(
    tmp_path: Path, full_disk: None
) -> None:
    run = of_run(tmp_path)
    run.export()
    assert run.record.warnings == [
        f"the weights could not be saved: [Errno 28] {os.strerror(errno.ENOSPC)}; --retry runs it again"
    ]
    assert not list(tmp_path.iterdir())


def test_weights_that_are_there_stay_until_new_ones_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    run = of_run(tmp_path)
    run.export()
    run.model = tiny_llama(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda *_: 1 / 0)
        run.export()
    assert run.record.warnings == ["the weights could not be saved: division by zero; --retry runs it again"]
    read = lambda: logits(checkpoint.load(tmp_path / "weights", torch.float32))  # noqa: E731
    assert torch.equal(read(), logits(tiny_llama()))
    run.export()
    assert torch.equal(read(), logits(tiny_llama(seed=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def hooked(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda layer, given, output: 3 * output)


def hooked_before(model: Any) -> None:
    model.lm_head.register_forward_pre_hook(lambda layer, given: (3 * given[0],))


def patched(model: Any) -> None:
    right = model.forward

    @functools.wraps(right)  # so that it calls itself one of transformers
    def forward(*given: Any, **named: Any) -> Any:
        output = right(*given, **named)
        output.logits = 3 * output.logits
        return output

    model.forward = forward


class Tripled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


def replaced(model: Any) -> None:
    model.lm_head.__class__ = Tripled


def wrapped(model: Any) -> None:
    model.lm_head = nn.Sequential(model.lm_head, nn.Threshold(0.0, 0.0))


def scaled(model: Any) -> None:
    parametrize.register_parametrization(model.lm_head, "weight", nn.Threshold(0.0, 0.0))


@pytest.mark.parametrize(
    ("change", "has"),
    [
        (hooked, "a forward hook at lm_head"),
        (hooked_before, "a forward hook at lm_head"),
        (patched, "a replaced forward at the model itself"),
        (replaced, "a Tripled at lm_head, where a Linear belongs"),
        (wrapped, "a Sequential at lm_head, where a Linear belongs"),
        (scaled, "a ParametrizedLinear at lm_head, where a Linear belongs"),
        (lambda model: model.lm_head.register_buffer("scale", torch.ones(1)), "such as lm_head.scale"),
    ],
)
def test_what_the_weights_leave_out_of_a_model_is_said(
    tmp_path: Path, change: Callable[[Any], None], has: str
) -> None:
    run = of_run(tmp_path)
    change(run.model)
    run.export()
    [warning] = run.record.warnings
    assert warning.startswith("the saved weights are not the whole model, which has ")
    assert has in warning


def test_a_model_whose_weights_are_all_of_it_leaves_no_warning(tmp_path: Path) -> None:
    for model in (tiny_llama(), tiny_llama(tie=True), factor_some(tiny_llama(tie=True))):
        run = of_run(tmp_path)
        run.model = model
        model(input_ids=torch.ones(1, 3, dtype=torch.long), output_hidden_states=True)  # leaves hooks
        model.enable_input_require_grads()
        run.export()
        assert run.record.warnings == []


def test_an_export_of_less_than_the_model_repeats_the_warning_of_the_run(tmp_path: Path) -> None:
    run, path = of_run(tmp_path), finished(tmp_path)
    hooked(run.model)
    run.export()
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"warnings": ["another", *run.record.warnings]}))
    assert export_run(path, tmp_path / "new", "dense") == run.record.warnings[0]


def test_on_a_disk_of_any_size_weights_are_whole_or_absent(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    checkpoint.save(model, tokenizer, tmp_path / "whole")
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    pages = sum(-(-len(content) // mmap.PAGESIZE) for content in whole.values())
    saved = []
    for size in range(1, pages + 3, 4):
        with small_disk(tmp_path / "disk", f"size={size * mmap.PAGESIZE}") as disk:
            run = of_run(disk)
            run.model, run.tokenizer = model, tokenizer
            run.export()
            found = {file.relative_to(disk): file.read_bytes() for file in disk.rglob("*") if file.is_file()}
            assert bool(found) != bool(run.record.warnings)
            assert not found or found == {Path("weights", name): text for name, text in whole.items()}
            saved.append(bool(found))
    assert (saved[0], saved[-1]) == (False, True)
    assert saved == sorted(saved)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_disk_without_room_for_the_weights_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    run = of_run(tmp_path, save_weights=True)
    needed = sum(4 * parameter.numel() for parameter in tiny_llama().parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - missing))
    loaded = SimpleNamespace(sha256=None)
    if not missing:
        run._check_loaded(loaded)
        return
    with pytest.raises(
        UserError, match=f"needs {needed:,} bytes in {tmp_path}, where {needed - 1:,} are free"
    ):
        run._check_loaded(loaded)


# ------------------------------------------------------------------------------------------- export
def finished(folder: Path, **manifest: Any) -> Path:
    """The record of a run with saved factors, of which the manifest says something else."""
    path = folder / "run.json"
    run = Run(method=(MethodChoice(name="full"),))
    content = {"suite": "test", "label": "x", "seed": 0, "repeat": 0, "tier": "embedded", "rerun": ""}
    ids = {"run_id": run.run_id, "config_id": run.config_id, "config": run.model_dump(mode="json")}
    record.write(record.Record(**content, **ids), path)
    weights = path.with_suffix("") / "weights"
    checkpoint.save(factor_some(tiny_llama()), None, weights)
    said = json.loads((weights / "factors.json").read_text())
    (weights / "factors.json").write_text(json.dumps(said | manifest))
    return path


KEY = "model.layers.0.self_attn.k_proj"
DAMAGED: dict[str, tuple[Any, str]] = {
    **{
        f"rank {rank}": ({KEY: rank}, f"gives '{KEY}' the rank {rank}; this layer takes 1 to 32")
        for rank in (-5, 0, 33, "3", 1e11, 10**11, float("nan"), True, None, [3])
    },
    "another rank": ({KEY: 3}, "of another shape"),
    "no layer": ({"model.layers.9.zork": 3}, "which is no linear layer of this model"),
    "the embedding": ({"model.embed_tokens": 3}, "which is no linear layer of this model"),
    "the whole model": ({"": 3}, "which is no linear layer of this model"),
    "a list": ([3], "not a manifest of factors"),
    "a number": (7, "not a manifest of factors"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_manifest_of_factors_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    ranks, says = DAMAGED[name]
    with pytest.raises(UserError) as caught:
        export_run(finished(tmp_path, ranks=ranks), tmp_path / "new", "dense")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("train", [{}, {"dtype": "int3"}, None, 7])
def test_a_record_that_does_not_say_the_type_of_its_weights_is_refused(tmp_path: Path, train: Any) -> None:
    path = finished(tmp_path)
    content = json.loads(path.read_text())
    content["config"]["train"] = train
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the config in it is not that of run"):
        export_run(path, tmp_path / "new", "dense")


def test_an_export_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give a new folder"):
        export_run(finished(tmp_path), tmp_path / "file", "dense")


def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", refuse)
    with pytest.raises(UserError, match="the model could not be written there: "):
        export_run(finished(tmp_path), tmp_path / "new", "dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.json"]
