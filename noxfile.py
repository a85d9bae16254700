"""Define every command of this project as a session; all sessions share one environment.

The environment is created on first use under `.nox/shared` (with uv where it is installed, else with
pip), pinned by constraints.txt, and recreated when the pins or the dependencies change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "shared"
CONSTRAINTS = ROOT / "constraints.txt"
QUICK = "not slow and not gpu"

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "none"
nox.options.error_on_missing_interpreters = True


def environment(session: nox.Session) -> str:
    """Return the Python of the shared environment; create it where it is missing or out of date."""
    python = SHARED / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = SHARED / "stamp"
    wanted = _fingerprint()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    shutil.rmtree(SHARED, ignore_errors=True)
    project = "-e", ".[dev]"
    uv = shutil.which("uv")
    if uv:
        links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
        env = {"UV_CONSTRAINT": str(CONSTRAINTS), **({"UV_FIND_LINKS": links} if links else {})}
        session.run(uv, "venv", "--quiet", "--python", sys.executable, str(SHARED), external=True)
        install = (uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python))
        session.run(*install, *project, env=env, external=True)
    else:
        session.run(sys.executable, "-m", "venv", str(SHARED), external=True)
        install = (str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS))
        session.run(*install, *project, external=True)
    stamp.write_text(wanted)
    return str(python)


def _fingerprint() -> str:
    """Hash what the environment depends on: the interpreter, the dependencies, the pins and this folder."""
    parts = (sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(), CONSTRAINTS.read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


#: What the parent's side of lorebench needs, without torch.
LIGHT = ("pytest", "typer", "pydantic", "pyyaml", "rich", "numpy", "pandas", "psutil", "threadpoolctl")


def own_environment(session: nox.Session, name: str, *packages: str) -> str:
    """Make an environment anew for packages with pins of their own, and return its Python."""
    place, uv = ROOT / ".nox" / name, shutil.which("uv")
    session.run(sys.executable, "-m", "venv", "--clear", str(place), external=True)
    python = str(place / "bin" / "python")
    install = (uv, "pip", "install", "--python", python) if uv else (python, "-m", "pip", "install")
    session.run(*install, "--quiet", *packages, external=True)
    return python


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest, each process on one thread; arguments from the command line come last and so win.

    Compiled modules are kept, or each of a hundred processes would compile ours, and pytest all tests.
    """
    python, variables = environment(session), {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    session.run(python, "-m", "pytest", *arguments, *session.posargs, env=variables, external=True)


#: Sessions that run modules, by name: description, and the modules with their arguments. What follows `--` is
#: added to each.
MODULES = {
    "bench-welore": (
        "Run the WeLore suite: `nox -s bench-welore -- --model DIR_OR_HUB_ID --data FILE_OR_DATASET`.",
        ["harness.cli run welore"],
    ),
    "bench-galore": (
        "Run the suite on GaLore's options; arguments as for bench-welore.",
        ["harness.cli run galore"],
    ),
    "bench-adarankgrad": ("Run the suite on AdaRankGrad's options.", ["harness.cli run adarankgrad"]),
    "bench-velora": ("Run the suite on VeLoRA's options.", ["harness.cli run velora"]),
    "bench-sltrain": ("Run the suite on SLTrain's options.", ["harness.cli run sltrain"]),
    "bench-related": (
        "Compare the related systems, in fine-tuning and from scratch (two suites).",
        ["harness.cli run related", "harness.cli run related_pretrain"],
    ),
    "bench-zoo": ("Run the suite on tuners and optimizers by their names.", ["harness.cli run zoo"]),
    "bench-compression": (
        "Run every allocator of ranks with every factoriser; arguments as for bench-welore.",
        ["harness.cli run compression"],
    ),
    "bench-all": (
        "Compare all methods: from scratch, in fine-tuning, and on a compressed model (three suites).",
        ["harness.cli run pretrain", "harness.cli run finetune", "harness.cli run compressed"],
    ),
    "bench-peers": (
        "Time our methods beside the code that one would otherwise run, interleaved in one process.",
        ["benchmarks.studies.peers"],
    ),
    "bench-shapes": (
        "Predict the memory of the shapes suite, measure what fits a GPU where there is one, write the page.",
        ["benchmarks.studies.memory"],
    ),
    "bench-at-scale": (
        "Forecast memory and speed of the rows of every suite on LLaMA-2 7B.",
        ["benchmarks.studies.at_scale"],
    ),
    "bench-claims": (
        "Forecast where WeLore's claim of 3 times the speed at 0.6 times the memory holds.",
        ["benchmarks.studies.claims"],
    ),
    "bench-speed": (
        "Compare forecasts of speed with measured updates on this machine, and write the page.",
        ["benchmarks.studies.speed"],
    ),
    "bench-commands": (
        "Time the commands beside 10,000 made-up records, cold and warm; `-- --only gate history` for some.",
        ["benchmarks.studies.commands"],
    ),
    "tune-welore": (
        "Find the learning rate of each row of the WeLore suite; arguments as for bench-welore.",
        ["harness.cli tune welore"],
    ),
    "tune-all": (
        "Find the learning rates of the suites of bench-all.",
        [
            "harness.cli tune pretrain --rates 3e-3,1e-2,3e-2,1e-1",
            "harness.cli tune finetune",
            "harness.cli tune compressed",
        ],
    ),
    "tune-related": (
        "Find the learning rates of the suites of bench-related.",
        [
            "harness.cli tune related",
            "harness.cli tune related_pretrain --rates 3e-3,1e-2,3e-2,1e-1",
        ],
    ),
    "tune-zoo": ("Find the learning rates of the suite on tuners and optimizers.", ["harness.cli tune zoo"]),
    "gate": (
        "Fail when the peak memory of any method has grown; `-- --write` stores today's peaks as baselines.",
        ["harness.cli gate --baselines"],
    ),
    "alarms": (
        "Measure how often `lorebench ab` raises false alarms or misses planted regressions.",
        ["benchmarks.studies.alarms"],
    ),
    "overhead": (
        "Measure the overhead of the harness over a bare training loop, as a ratio in one process.",
        ["benchmarks.studies.overhead"],
    ),
    "gpu": (
        "Run the acceptance on a GPU; repeat until nothing is left: `nox -s gpu -- --minutes 9`.",
        ["benchmarks.studies.acceptance"],
    ),
    "tables": (
        "Regenerate every page that follows from files; `-- --check` only says whether any has drifted.",
        ["harness.tables.generated"],
    ),
    "base-checkpoint": (
        "Rebuild the embedded tokenizer and checkpoint by their recipe (about ten minutes).",
        ["benchmarks.embedded.build"],
    ),
}


def add_session(name: str, description: str, commands: list[str]) -> None:
    """Register a session that runs modules one after another."""

    def run_modules(session: nox.Session) -> None:
        for command in commands:
            words = (*command.split(), *session.posargs)
            session.run(environment(session), "-P", "-m", *words, external=True)

    run_modules.__doc__ = description
    nox.session(run_modules, name=name)


for session_name, (session_description, session_commands) in MODULES.items():
    add_session(session_name, session_description, session_commands)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests that need neither a GPU nor minutes."""
    pytest(session, "-m", QUICK, "-n", "auto", "--dist", "worksteal")


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    pytest(session, "-m", "slow and not gpu")


@nox.session
def mlflow(session: nox.Session) -> None:
    """Upload to a real MLflow server; client and server have environments of their own, for their pins."""
    server = own_environment(session, "mlflow/server", "mlflow>=3")
    client = own_environment(session, "mlflow/client", "mlflow-skinny>=3", *LIGHT)
    settings = {"LOREBENCH_MLFLOW_SERVER": server, "PYTHONPATH": str(ROOT)}
    command = (client, "-m", "pytest", "--noconftest", "tests/mlflow")
    session.run(*command, *session.posargs, env=settings, external=True)


@nox.session
def loggers(session: nox.Session) -> None:
    """Log with the packages themselves, offline, in an environment of their own, for their pins."""
    packages = ("tensorboard>=2.18", "wandb>=0.21", "mlflow>=3", "trackio>=0.9")
    python = own_environment(session, "loggers", *packages, *LIGHT)
    command = (python, "-m", "pytest", "--noconftest", "-rs", "tests/unit/engine/loggers")
    session.run(*command, *session.posargs, env={"PYTHONPATH": str(ROOT)}, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    python = environment(session)
    session.run(python, "-m", "ruff", "check", ".", external=True)
    session.run(python, "-m", "ruff", "format", "--check", ".", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.run(environment(session), "-m", "mypy", external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages in docs/ as a site in site/; any warning, such as a broken link, is an error."""
    command = (environment(session), "-m", "mkdocs", "build", "--strict", "--clean")
    session.run(*command, env={"NO_MKDOCS_2_WARNING": "1"}, external=True)
