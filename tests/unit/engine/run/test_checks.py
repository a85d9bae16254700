"""What is refused before a run starts, and how running out of memory is told from a defect."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from harness import plugins
from harness.config import MethodChoice, Run
from harness.engine.run import checks
from harness.engine.run.outcome import requested_bytes
from harness.engine.sweep.resolution import resolve
from harness.errors import UnsupportedError, UserError, is_out_of_memory
from harness.files import ROOT
from harness.method import Caps, Method, MethodConfig, stack_caps
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
        no_export = "codes are no weights" if lacks == "export" else ""
        switches = {"grad_accum": lacks != "accumulation", "grad_clip": lacks != "clipping"}
        return Caps(frozenset(stages), no_export=no_export, **switches)


HERE = f"{__name__}:Limited"
SMALL = {"model": {"source": "shape", "name": "nano"}, "data": {"source": "random", "seq_len": 16}}


def run(*lacks: str, **content: Any) -> Run:
    method = [{"name": HERE, "options": {"lacks": word}} for word in lacks] or "full"
    return validate(Run, {"method": method, **SMALL, **content}, "test")


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


def test_the_reason_is_that_of_the_method_that_lacks_the_stage() -> None:
    methods = [{"lora": {}}, {"compress": {}}]
    asked = Run.model_validate({"method": methods, "train": {"stage": "compress"}})
    with pytest.raises(UnsupportedError, match=r"does not do stage 'compress'") as caught:
        checks.supported(asked, checks.stack(asked))
    assert "random weights" not in str(caught.value)  # why `compress` does not do another stage


def test_weights_that_a_stack_cannot_export_are_refused_before_it_trains() -> None:
    asked = run("", "export", train={"stage": "finetune"}, save_weights=True)
    with pytest.raises(
        UnsupportedError, match="exports no plain model: codes are no weights; leave out save_weights"
    ):
        checks.supported(asked, checks.stack(asked))
    allowed = run("", "export", train={"stage": "finetune"})
    checks.supported(allowed, checks.stack(allowed))


# -------------------------------------------------------------------------------------------- resolving
def test_resolving_completes_the_options_and_keeps_the_label() -> None:
    asked = run("clipping")
    (resolved,) = checks.resolve([asked])
    assert resolved.method == (MethodChoice(name=HERE, options={"lacks": "clipping", "size": 3}),)
    assert resolved.name == asked.name
    assert checks.resolve([resolved])[0].run_id == resolved.run_id


# ---------------------------------------------------------------- the version of a method's arithmetic
class Reworked(Limited):
    """Changed its arithmetic twice: sizes above 3 since version 2; `lacks` came with version 3."""

    later: ClassVar[Mapping[str, int]] = {"lacks": 3}

    @property
    def version(self) -> int:
        return 3 if self.config.lacks == "nothing" else 2 if self.config.size > 3 else 1


def resolved(cls: type[Method], **options: Any) -> Run:
    choice = {"name": f"{__name__}:{cls.__name__}", "options": options}
    return checks.resolve([validate(Run, {"method": choice, **SMALL}, "test")])[0]


def identity(*method: dict[str, Any]) -> str:
    """The id by its definition: a hash of the config in canonical JSON, computed here."""
    content = validate(Run, {"method": "full", **SMALL}, "test").model_dump(mode="json")
    kept = ("model", "data", "train", "evaluate")
    text = json.dumps({**{key: content[key] for key in kept}, "method": method}, sort_keys=True)
    return hashlib.sha256(text.replace(", ", ",").replace(": ", ":").encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({}, {"options": {"size": 3}}),  # as before there were versions, and before `lacks`
        ({"size": 4}, {"options": {"size": 4}, "version": 2}),
        ({"lacks": "nothing"}, {"options": {"lacks": "nothing", "size": 3}, "version": 3}),
    ],
)
def test_the_version_of_the_arithmetic_is_part_of_the_identity_from_2_on(
    options: dict[str, Any], counted: dict[str, Any]
) -> None:
    found = resolved(Reworked, **options)
    assert found.config_id == identity({"name": f"{__name__}:Reworked", **counted})
    assert found.method[0].options == {"lacks": "", "size": 3, **options}
    assert Run.model_validate(found.canonical).config_id == found.config_id  # what a record holds
    again = Run.model_validate_json(found.model_dump_json())  # what a worker reads
    assert (again.config_id, again.method[0].options) == (found.config_id, found.method[0].options)
    assert checks.resolve([again]) == [found]


def test_a_method_whose_arithmetic_has_never_changed_keeps_its_ids() -> None:
    name = f"{__name__}:Limited"
    assert resolved(Limited).config_id == identity({"name": name, "options": {"lacks": "", "size": 3}})


@pytest.mark.parametrize("given", [{"version": 2}, {"version": 7}, {"as_before": ["size"]}])
def test_a_version_is_not_for_a_suite_to_choose(given: dict[str, Any]) -> None:
    wanted = validate(Run, {"method": {"name": HERE, **given}, **SMALL}, "test")
    with pytest.raises(UserError, match="`version` and `as_before` are not for suites; leave them out"):
        checks.resolve([wanted])


@pytest.mark.parametrize("version", [0, -1, 1.5, "2", None, True])
def test_a_version_that_is_no_whole_number_is_refused(version: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limited, "version", version)
    with pytest.raises(UserError, match=r"its version is .*; it must be a whole number from 1"):
        resolved(Limited)


def test_the_reference_records_are_still_those_of_their_methods_and_kept_moments_have_free_signs() -> None:
    """Those made before bases had aligned signs, of which no other has a new id, and those made since."""
    records = [json.loads(path.read_text()) for path in (ROOT / "results" / "raw").glob("*/*/*.json")]
    assert records
    seen: set[bool | None] = set()
    for item in {item["config_id"]: item for item in records}.values():
        plain, free = Run.model_validate(item["config"]), deepcopy(item["config"])
        if any(choice.get("version") == 2 for choice in item["config"]["method"]):
            assert checks.completed(plain).config_id == item["config_id"]
            seen.add(None)
            continue
        for choice in free["method"]:
            has_signs = "signs" in plugins.find(choice["name"]).Config.model_fields
            if has_signs and choice["options"].get("moments") == "keep":
                choice["options"]["signs"] = "free"
        kept = free != item["config"]
        seen.add(kept)
        same = [
            checks.completed(run).config_id == item["config_id"] for run in (Run.model_validate(free), plain)
        ]
        assert same == [True, not kept]
    assert seen == {True, False, None}


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
        ({"method": f"{__name__}:Nothing"}, "has no class .Nothing."),
        ({"method": f"{__name__}:Config"}, r"is not a subclass of harness\.method\.Method"),
        ({"model": {"source": "shape", "name": "nanno"}}, r"no shape 'nanno'; did you mean 'nano'"),
        ({"model": {"source": "local", "path": "/nowhere"}}, "no model folder at /nowhere"),
        ({"data": {"source": "files", "paths": ["/nowhere.txt"]}}, r"no file at /nowhere\.txt"),
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
    monkeypatch.setattr(checks.documents, "documents_of_files", lambda data: [reads.append(data)])
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


@pytest.mark.parametrize(
    ("method", "fixed"),
    [
        ("full", False),
        ({"loraprune": {"updates": 50}}, False),
        ({"svdllm": {"train": "stages"}}, True),
        (["int8", "loraprune"], True),
    ],
)
def test_methods_that_plan_by_the_number_of_updates_are_known(method: Any, fixed: bool) -> None:
    run = Run.model_validate({"method": method, "train": {"steps": 70}})
    assert stack_caps(checks.stack(run)).fixed_length is fixed
    plan = resolve([run, run.model_copy(update={"seed": 3})], "cpu", text=False)
    assert plan.fixed_length == ({each.run_id for each in plan.runs} if fixed else set())
