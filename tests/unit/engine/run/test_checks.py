"""What is refused before a run starts, and how running out of memory is told from a defect."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import MethodChoice, Run
from harness.engine.run import checks
from harness.engine.run.outcome import requested_bytes
from harness.errors import UnsupportedError, UserError, is_out_of_memory
from harness.method import Caps, Method, MethodConfig
from harness.validation import validate


class Config(MethodConfig):
    """Which of the abilities the method lacks."""

    lacks: str = ""
    size: int = 3


class Limited(Method):
    """Cannot do what `lacks` names."""

    Config = Config
    config: Config

    @property
    def caps(self) -> Caps:
        lacks = self.config.lacks
        stages = {"pretrain", "finetune", "compress"} - {lacks}
        return Caps(frozenset(stages), grad_accum=lacks != "accumulation", grad_clip=lacks != "clipping")


HERE = f"{__name__}:Limited"


def run(*lacks: str, **content: Any) -> Run:
    method = [{"name": HERE, "options": {"lacks": word}} for word in lacks] or "full"
    small = {"model": {"source": "shape", "name": "nano"}, "data": {"source": "random", "seq_len": 16}}
    return validate(Run, {"method": method, **small, **content}, "test")


# --------------------------------------------------------------------------------------------- devices
def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checks.device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu cuda", "-1"])
def test_a_name_that_is_no_device_is_refused_with_the_names_that_are(name: str) -> None:
    with pytest.raises(UserError, match="use auto, cpu, cuda or cuda:N"):
        checks.device(name)


@pytest.mark.parametrize("name", ["meta", "mps", "xla"])
def test_a_device_without_rulers_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}' cannot be measured"):
        checks.device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no CUDA device here"):
        checks.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checks.device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="no device 'cuda:2': this machine has 2 CUDA devices"):
        checks.device("cuda:2")


# ---------------------------------------------------------------------------------------- combinations
def test_what_all_methods_of_a_stack_can_do_is_supported() -> None:
    asked = run("", "compress", train={"grad_accum": 4, "clip": 1.0, "stage": "finetune"})
    assert checks.supported(asked, checks.stack(asked)).stages == {"pretrain", "finetune"}


@pytest.mark.parametrize(
    ("lacks", "train", "says"),
    [
        ("pretrain", {"stage": "pretrain"}, r"does not do stage 'pretrain' \(it does: compress, finetune\)"),
        ("compress", {"stage": "compress"}, r"does not do stage 'compress' \(it does: finetune, pretrain\)"),
        ("accumulation", {"grad_accum": 2}, "gradient accumulation is not possible"),
        ("clipping", {"clip": 0.5}, "clipping is not possible"),
    ],
)
def test_what_one_method_of_a_stack_cannot_do_is_refused_with_the_reason(
    lacks: str, train: dict[str, Any], says: str
) -> None:
    asked = run("", lacks, train=train)
    with pytest.raises(UnsupportedError, match=says) as caught:
        checks.supported(asked, checks.stack(asked))
    assert str(caught.value).startswith(f"{HERE} + {HERE} ")
    allowed = run("", lacks, train={"stage": "finetune"})
    checks.supported(allowed, checks.stack(allowed))


# -------------------------------------------------------------------------------------------- resolving
def test_resolving_completes_the_options_and_keeps_the_label() -> None:
    asked = run("clipping")
    (resolved,) = checks.resolve([asked])
    assert resolved.method == (MethodChoice(name=HERE, options={"lacks": "clipping", "size": 3}),)
    assert resolved.name == asked.name
    assert checks.resolve([resolved])[0].run_id == resolved.run_id


def test_an_option_spelled_out_or_left_to_its_default_is_the_same_run() -> None:
    short, long = (
        run(method=[{"name": HERE, "options": options}]) for options in ({}, {"lacks": "", "size": 3})
    )
    assert short.config_id != long.config_id
    assert checks.resolve([short])[0].config_id == checks.resolve([long])[0].config_id


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"method": [{"name": HERE, "options": {"sise": 1}}]}, r"unknown key 'sise'.*did you mean 'size'"),
        (
            {"method": [{"name": HERE, "options": {"size": "big"}}]},
            "size: give a whole number, not the text 'big'",
        ),
        ({"method": "tests.unit.nothing:Method"}, r"cannot import module 'tests\.unit\.nothing'"),
        ({"method": f"{__name__}:Nothing"}, r"is not a subclass of harness\.method\.Method"),
        ({"method": f"{__name__}:Config"}, r"is not a subclass of harness\.method\.Method"),
        ({"model": {"source": "shape", "name": "nanno"}}, r"no shape 'nanno'; did you mean 'nano'"),
        ({"model": {"source": "local", "path": "/nowhere"}}, "no model folder at /nowhere"),
        ({"data": {"source": "files", "paths": ["/nowhere.txt"]}}, r"no file at /nowhere\.txt"),
        ({"evaluate": {"perplexity": ["world-c"]}}, "no perplexity protocol 'world-c'; did you mean 'world-"),
        ({"evaluate": {"perplexity": ["heldout"]}}, "'heldout' needs data"),
    ],
)
def test_input_that_cannot_be_used_is_refused_before_any_run(content: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        checks.resolve([run(), run(**content)])
    assert "\n" not in str(caught.value)


def test_a_file_that_many_runs_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some text")
    reads: list[Any] = []
    monkeypatch.setattr(checks.documents, "documents_of_files", reads.append)
    data = {"source": "files", "paths": [str(path)]}
    checks.resolve([run(data=data, model={"source": "embedded"}, seed=seed) for seed in range(5)])
    assert len(reads) == 1


# -------------------------------------------------------------------------------------------- outcomes
def test_a_real_allocation_that_the_host_cannot_make_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert requested_bytes(str(caught.value)) == 2**60


def test_a_real_allocation_that_numpy_cannot_make_is_recognised() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.uint8)
    assert is_out_of_memory(caught.value)
    assert requested_bytes(str(caught.value)) == 2**60


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.81 GiB "
                "of which 1.20 GiB is free. Including non-PyTorch memory, this process has 138.60 GiB"
            ),
            5 * 2**29,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; ...)"), 20 * 2**20),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 bytes."), 512),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            None,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
        (MemoryError(), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
    ],
)
def test_every_way_to_run_out_of_memory_is_recognised(error: Exception, asked: int | None) -> None:
    assert is_out_of_memory(error)
    assert requested_bytes(str(error)) == asked


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError(errno.ENOENT, "No such file or directory"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("can't allocate memory for more than one"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert requested_bytes(str(error)) is None


@pytest.mark.parametrize("name", ["sltrain", "lowrank"])
def test_a_method_that_would_lose_trained_weights_says_so(name: str) -> None:
    asked = run(train={"stage": "finetune"}).model_copy(update={"method": (MethodChoice(name=name),)})
    with pytest.raises(
        UnsupportedError, match=f"{name} does not do stage 'finetune' .* trained weights would be lost"
    ):
        checks.supported(asked, checks.stack(asked))
