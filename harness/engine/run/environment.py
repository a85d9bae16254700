"""Describe the environment of a run, so that only like is compared with like.

Nothing identifies a person or a place: no host name, user name or path, and of the environment variables only
those of `VARIABLES`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

import harness
from harness import git
from harness.errors import UserError
from harness.files import ABSENT, ROOT, installed
from harness.record import VARIABLES, Environment

PACKAGES = (
    "torch",
    "transformers",
    "lm-eval",
    "datasets",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
)
#: The packages whose kernels keep states in so many bits; without such states they decide nothing.
OF_STATE_BITS: dict[int | None, tuple[str, ...]] = {8: ("bitsandbytes",)}
#: The variable that limits the GiB of a run on its GPU, as if the device were smaller.
CAP = "LOREBENCH_CUDA_GIB"
#: The folders whose code decides a result; a change elsewhere (pages, results, tests) does not.
CODE = ("harness", "methods", "benchmarks")
Flag = str | bool | int


def describe(device: torch.device | str, state_bits: int | None = None) -> Environment:
    """Describe machine, versions and settings for a device; unknown fields are absent.

    `state_bits` is the precision of the optimizer's states: 8 bits need a package of their own.
    """
    device = torch.device(device)
    cpu = cpu_model()
    commit, changes = git.state(ROOT, CODE)
    return Environment(
        device=device_name(device),
        cpu=cpu,
        cpu_threads=torch.get_num_threads(),
        system=system(),
        python=platform.python_version(),
        packages=packages(state_bits),
        git_sha=commit,
        git_dirty_sha256=changes,
        driver=driver() if device.type == "cuda" else None,
        flags=flags(),
    )


@functools.cache
def code_sha256() -> str:
    """Return a hash of the code that decides a result, wherever it was installed from."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def cap(device: torch.device) -> int | None:
    """Limit this process to the GiB of `CAP` on a GPU and return the bytes; None without the variable.

    The limit holds for what PyTorch's allocator reserves; the device context comes on top.
    """
    given = os.environ.get(CAP)
    if given is None:
        return None
    if device.type != "cuda":
        raise UserError(f"{CAP} is set, but limits a GPU alone; unset it, or use --device cuda")
    total = total_bytes(device)
    try:
        size = round(float(given) * 2**30)
    except (ValueError, OverflowError):
        size = 0
    if not 0 < size <= total:
        raise UserError(f"{CAP}={given!r}: give GiB above 0, at most the {total / 2**30:.1f} of the device")
    torch.cuda.set_per_process_memory_fraction(size / total, device)
    return size


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of this machine's processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def machine_slug(device: torch.device | str) -> str:
    """Return a folder name for machines with comparable times: `cpu-2t` (threads), `nvidia-h200`."""
    device = torch.device(device)
    if device.type == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"cpu-{torch.get_num_threads()}t"


def device_id(device: torch.device) -> str:
    """Return a name of a device for all processes of this host: a GPU's number depends on what is visible."""
    if device.type != "cuda":
        return str(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if index < len(visible) and visible[index].startswith("MIG"):  # a part of a GPU
        return visible[index]
    return f"cuda-{torch.cuda.get_device_properties(index).uuid}"


def total_bytes(device: torch.device) -> int:
    """Return the total memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def system() -> str:
    """Return operating system, kernel version and architecture."""
    # A kernel's release may continue with names given by its builder; the numbers are enough.
    numbers = re.match(r"[\d.]*", platform.release())
    return f"{platform.system()} {numbers[0] if numbers else ''} {platform.machine()}"


def cpu_model() -> str:
    """Return the name of the processor from the kernel, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def packages(state_bits: int | None = None) -> dict[str, str]:
    """Return the versions of installed packages that decide a result, with optimizer states of some bits."""
    found = {"lorebench": harness.__version__}
    names = PACKAGES + OF_STATE_BITS.get(state_bits, ())
    found |= {name: version for name in names if (version := installed(name)) != ABSENT}
    found["torch"] = str(torch.__version__)  # with its build (+cpu, +cu126), which the metadata may lack
    return found


def driver() -> str:
    """Return the NVIDIA driver, if the kernel names it, and the CUDA runtime that torch was built with."""
    module = Path("/sys/module/nvidia/version")
    version = module.read_text().strip() if module.exists() else "unknown"
    return f"driver {version}, CUDA {torch.version.cuda}"


def flags() -> dict[str, Flag]:
    """Return settings that change speed or the last bits of a result; `mixed` if torch cannot tell."""
    settings: dict[str, Callable[[], Flag]] = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "cudnn_benchmark": lambda: torch.backends.cudnn.benchmark,
        "cudnn_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "matmul_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    }
    values = {name: _setting(read) for name, read in settings.items()}
    return values | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _setting(read: Callable[[], Flag]) -> Flag:
    try:
        return read()
    except RuntimeError:  # torch refuses to answer when a program sets tf32 by its old and its new names
        return "mixed"
