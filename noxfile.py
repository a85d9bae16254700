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


def lorebench(session: nox.Session, *arguments: str) -> None:
    """Call the command line in the shared environment."""
    session.run(environment(session), "-m", "harness.cli", *arguments, external=True)


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest, each process on one thread; arguments from the command line come last and so win."""
    python, threads = environment(session), {"OMP_NUM_THREADS": "1"}
    session.run(python, "-m", "pytest", *arguments, *session.posargs, env=threads, external=True)


#: Sessions that run suites: description and suites by name. Arguments behind `--` go to `lorebench run`.
SUITES = {
    "bench-welore": (
        "Run the WeLore suite: `nox -s bench-welore -- --model DIR_OR_HUB_ID --data FILE_OR_DATASET`.",
        ("welore",),
    ),
    "bench-galore": ("Run the suite on GaLore's options; arguments as for bench-welore.", ("galore",)),
    "bench-adarankgrad": ("Run the suite on AdaRankGrad's options.", ("adarankgrad",)),
    "bench-velora": ("Run the suite on VeLoRA's options.", ("velora",)),
    "bench-sltrain": ("Run the suite on SLTrain's options.", ("sltrain",)),
    "bench-all": (
        "Compare all methods: from scratch, in fine-tuning, and on a compressed model (three suites).",
        ("pretrain", "finetune", "compressed"),
    ),
    "tune-welore": ("Run the grid that the learning rates of the WeLore suite come from.", ("welore_lr",)),
    "tune-all": (
        "Run the grids that the learning rates of bench-all come from.",
        ("pretrain_lr", "finetune_lr", "compressed_lr"),
    ),
}


def add_session(name: str, description: str, suites: tuple[str, ...]) -> None:
    """Register a session that runs suites one after another."""

    def run_suites(session: nox.Session) -> None:
        for suite in suites:
            lorebench(session, "run", suite, *session.posargs)

    run_suites.__doc__ = description
    nox.session(run_suites, name=name)


for session_name, (session_description, session_suites) in SUITES.items():
    add_session(session_name, session_description, session_suites)


@nox.session(name="bench-peers")
def bench_peers(session: nox.Session) -> None:
    """Time our methods beside the code that one would otherwise run, interleaved in one process."""
    session.run(environment(session), "-m", "benchmarks.studies.peers", *session.posargs, external=True)


@nox.session(name="bench-shapes")
def bench_shapes(session: nox.Session) -> None:
    """Predict the memory of the shapes suite, measure what fits a GPU where there is one, write the pages."""
    session.run(environment(session), "-m", "benchmarks.studies.memory", *session.posargs, external=True)


@nox.session
def gate(session: nox.Session) -> None:
    """Fail when the peak memory of any method has grown; `-- --write` stores today's peaks as baselines."""
    lorebench(session, "gate", "--baselines", *session.posargs)


@nox.session
def alarms(session: nox.Session) -> None:
    """Measure how often `lorebench ab` raises false alarms or misses planted regressions."""
    session.run(environment(session), "-m", "benchmarks.studies.alarms", *session.posargs, external=True)


@nox.session
def overhead(session: nox.Session) -> None:
    """Measure the overhead of the harness over a bare training loop, as a ratio in one process."""
    session.run(environment(session), "-m", "benchmarks.studies.overhead", *session.posargs, external=True)


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
    place = ROOT / ".nox" / "mlflow"
    needed = (
        "mlflow-skinny>=3",
        *("pytest", "typer", "pydantic", "pyyaml", "rich", "numpy", "pandas", "psutil"),
    )
    for name, packages in {"server": ("mlflow>=3",), "client": needed}.items():
        session.run(sys.executable, "-m", "venv", "--clear", str(place / name), external=True)
        python, uv = str(place / name / "bin" / "python"), shutil.which("uv")
        install = (uv, "pip", "install", "--python", python) if uv else (python, "-m", "pip", "install")
        session.run(*install, "--quiet", *packages, external=True)
    settings = {"LOREBENCH_MLFLOW_SERVER": str(place / "server/bin/python"), "PYTHONPATH": str(ROOT)}
    command = (str(place / "client/bin/python"), "-m", "pytest", "--noconftest", "tests/mlflow")
    session.run(*command, *session.posargs, env=settings, external=True)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the acceptance on a GPU; repeat until nothing is left: `nox -s gpu -- --minutes 9`."""
    session.run(environment(session), "-m", "benchmarks.studies.acceptance", *session.posargs, external=True)


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


@nox.session
def tables(session: nox.Session) -> None:
    """Regenerate every page that follows from files; `-- --check` only says whether any has drifted."""
    session.run(environment(session), "-m", "harness.tables.generated", *session.posargs, external=True)


@nox.session(name="base-checkpoint")
def base_checkpoint(session: nox.Session) -> None:
    """Rebuild the embedded tokenizer and checkpoint by their recipe (about half an hour)."""
    session.run(environment(session), "-m", "benchmarks.embedded.build", *session.posargs, external=True)
