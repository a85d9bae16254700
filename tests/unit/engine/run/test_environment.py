"""What a record says about the machine: enough to compare, nothing that names a person or a place."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.engine.process.job import Job
from harness.engine.run import environment, phases
from harness.record import Time
from harness.tables import aggregate
from harness.tables.compare import pairing
from tests.contract.test_methods import CASES
from tests.docs.sources import ROOT
from tests.gpu import watching


def test_the_description_has_device_versions_and_determinism() -> None:
    described = environment.describe("cpu")
    assert described.device == described.cpu != ""
    assert described.cpu_threads == torch.get_num_threads()
    assert described.python == platform.python_version()
    assert described.packages["torch"] == torch.__version__
    assert {"lorebench", "torch", "transformers", "lm-eval", "datasets", "peft", "numpy"} <= set(
        described.packages
    )
    assert described.flags["deterministic_algorithms"] is False
    assert described.driver is None


def test_every_package_that_decides_a_comparison_can_be_recorded() -> None:
    wide, eight = (environment.describe("cpu", bits).packages for bits in (32, 8))
    assert eight == {**wide, "bitsandbytes": importlib.metadata.version("bitsandbytes")}
    assert {*pairing.PACKAGES, *aggregate.NUMERICAL} <= set(eight)


@pytest.mark.parametrize("state_bits", [8, 32])
def test_a_run_records_the_package_of_its_states(state_bits: int, tmp_path: Path) -> None:
    run = watching.run_of(CASES["full"], shape="nano", length=16, batch=2, steps=1, state_bits=state_bits)
    job = Job(run, "s", tmp_path / "run", "cpu", tmp_path, "")
    writer: Any = SimpleNamespace(record=job.blank(), time=Time(), reading=None)
    phases.RunInProgress(job, writer).load()
    assert ("bitsandbytes" in writer.record.environment.packages) == (state_bits == 8)


def test_the_description_names_no_host_user_or_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(platform, "node", lambda: "the-host")
    monkeypatch.setattr(platform, "release", lambda: "6.1.2-the-host")
    text = environment.describe("cpu").model_dump_json()
    found = [word for word in ("hf_secret", "the-host", str(Path.home()), str(Path.cwd())) if word in text]
    assert found == []
    assert getpass.getuser() == "root" or getpass.getuser() not in text
    assert environment.describe("cpu").system.split()[1] == "6.1.2"


def test_determinism_flags_follow_torch_and_the_named_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.use_deterministic_algorithms(True)
    try:
        flags = environment.flags()
    finally:
        torch.use_deterministic_algorithms(False)
    assert flags["deterministic_algorithms"] is True
    assert flags["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "OMP_NUM_THREADS" not in flags


def test_a_setting_that_torch_refuses_to_tell_reads_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert environment.flags()["float32_matmul_precision"] == "mixed"


def test_the_slug_of_a_cpu_counts_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert environment.machine_slug("cpu") == "cpu-2t"


@pytest.mark.parametrize(
    ("name", "slug"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb")],
)
def test_the_slug_of_a_gpu_is_its_name(name: str, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert environment.machine_slug("cuda:0") == slug
    described = environment.describe("cuda:0")
    assert (described.device, described.cpu) == (name, environment.cpu_model())
    assert described.driver is not None
    assert described.driver.startswith("driver ")


def test_a_package_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package-here",))
    assert set(environment.packages()) == {"lorebench", "torch"}


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "PASSIVE 1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None")]
)
def test_threads_of_a_run_spin_shortly_unless_a_policy_is_given(given: dict[str, str], policy: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = f"import os, harness.engine.worker; print(*map(os.environ.get, {names}))"
    variables = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=variables | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == policy


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone returns memory in between")
@pytest.mark.parametrize("given", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_an_update_takes_no_memory_anew_from_the_system_unless_a_threshold_is_given(
    given: dict[str, str],
) -> None:
    """Pages that are first touched, in a later one of several rounds of tensors that live together."""
    code = """
import resource
import torch
from harness.engine.process.freed_memory import keep_freed_memory
from harness.engine.run.environment import flags

keep_freed_memory()
touched = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(1 << 20) for _ in range(32)]
    del kept
    touched.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(touched) * resource.getpagesize() >> 20, flags().get("MALLOC_TRIM_THRESHOLD_"))
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=variables | given,
        capture_output=True,
        text=True,
        check=True,
    )
    mebibytes, threshold = done.stdout.split()
    assert threshold == given.get("MALLOC_TRIM_THRESHOLD_", "2147483647")
    assert (int(mebibytes) < 4) if not given else (int(mebibytes) > 64)
