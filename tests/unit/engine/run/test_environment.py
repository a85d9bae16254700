"""What a record says about the machine: enough to compare, nothing that names a person or a place."""

from __future__ import annotations

import getpass
import platform
from pathlib import Path

import pytest
import torch

from harness.engine.run import environment


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
