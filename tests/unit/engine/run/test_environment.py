"""What a record says about the machine: enough to compare, nothing that names a person or a place."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from harness.engine.run import environment

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one committed file of code and one page."""
    root = tmp_path / "repository"
    (root / "harness").mkdir(parents=True)
    (root / "harness" / "code.py").write_text("x = 1\n")
    (root / "README.md").write_text("read me\n")
    (root / ".gitignore").write_text("*.log\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, *command], cwd=root, check=True)
    return root


def dirty(root: Path) -> str | None:
    return environment.git_state(root)[1]


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


# -------------------------------------------------------------------------------------------------- git
def test_a_clean_repository_has_a_commit_and_no_changes(repository: Path) -> None:
    commit, changes = environment.git_state(repository)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True)
    assert (commit, changes) == (head.stdout.strip(), None)


def test_changed_new_and_deleted_code_is_dirty_each_in_its_own_way(repository: Path) -> None:
    code, new = repository / "harness" / "code.py", repository / "harness" / "new.py"
    code.write_text("x = 2\n")
    changed = dirty(repository)
    new.write_text("y = 1\n")
    added = dirty(repository)
    new.write_text("y = 2\n")
    edited = dirty(repository)
    new.unlink()
    assert dirty(repository) == changed
    code.unlink()
    gone = dirty(repository)
    assert len({changed, added, edited, gone, None}) == 5
    code.write_text("x = 1\n")
    assert dirty(repository) is None


def test_staged_changes_are_dirty_as_well(repository: Path) -> None:
    (repository / "harness" / "code.py").write_text("x = 3\n")
    unstaged = dirty(repository)
    subprocess.run([*GIT, "add", "."], cwd=repository, check=True)
    assert dirty(repository) == unstaged is not None


def test_pages_results_and_ignored_files_do_not_make_code_dirty(repository: Path) -> None:
    (repository / "README.md").write_text("another page\n")
    (repository / "results").mkdir()
    (repository / "results" / "run.json").write_text("{}")
    (repository / "harness" / "run.log").write_text("")
    assert dirty(repository) is None


def test_outside_git_and_below_a_foreign_repository_nothing_is_said(tmp_path: Path, repository: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    assert environment.git_state(outside) == (None, None)
    assert environment.git_state(repository / "harness") == (None, None)


def test_without_git_nothing_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    assert environment.git_state(repository) == (None, None)
