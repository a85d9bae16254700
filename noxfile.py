"""Everything that is run on this project, each by one command; all sessions share one environment.

The environment is made on first use under `.nox/shared` (with uv where it is installed, else with
pip), pinned by constraints.txt, and made again when the pins or the dependencies change.
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
    """Return the Python of the shared environment, after making it where it is missing or out of date."""
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
    """What the environment depends on: the interpreter, the dependencies, the pins and this folder."""
    parts = (sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(), CONSTRAINTS.read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def lorebench(session: nox.Session, *arguments: str) -> None:
    """Call the command line in the shared environment."""
    session.run(environment(session), "-m", "harness.cli", *arguments, external=True)


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest, each process on one thread; arguments from the command line come last and so win."""
    python, threads = environment(session), {"OMP_NUM_THREADS": "1"}
    session.run(python, "-m", "pytest", *arguments, *session.posargs, env=threads, external=True)


@nox.session(name="bench-welore")
def bench_welore(session: nox.Session) -> None:
    """Run the WeLore suite: `nox -s bench-welore -- --model DIR_OR_HUB_ID --data FILE_OR_DATASET`."""
    lorebench(session, "run", "welore", *session.posargs)


@nox.session(name="bench-galore")
def bench_galore(session: nox.Session) -> None:
    """Run the suite on GaLore's options; arguments as for bench-welore."""
    lorebench(session, "run", "galore", *session.posargs)


@nox.session(name="bench-adarankgrad")
def bench_adarankgrad(session: nox.Session) -> None:
    """Run the suite on AdaRankGrad's options."""
    lorebench(session, "run", "adarankgrad", *session.posargs)


@nox.session(name="bench-velora")
def bench_velora(session: nox.Session) -> None:
    """Run the suite on VeLoRA's options."""
    lorebench(session, "run", "velora", *session.posargs)


@nox.session(name="bench-sltrain")
def bench_sltrain(session: nox.Session) -> None:
    """Run the suite on SLTrain's options."""
    lorebench(session, "run", "sltrain", *session.posargs)


@nox.session(name="bench-all")
def bench_all(session: nox.Session) -> None:
    """Compare all methods: from scratch, in fine-tuning, and on a compressed model (three suites)."""
    for suite in ("pretrain", "finetune", "compressed"):
        lorebench(session, "run", suite, *session.posargs)


@nox.session(name="bench-peers")
def bench_peers(session: nox.Session) -> None:
    """Time our methods beside the code that a user would otherwise run, in one process, in turns."""
    session.run(environment(session), "-m", "benchmarks.studies.peers", *session.posargs, external=True)


@nox.session(name="bench-shapes")
def bench_shapes(session: nox.Session) -> None:
    """Predict the memory of the shapes suite, measure what fits a GPU where there is one, write the pages."""
    session.run(environment(session), "-m", "benchmarks.studies.memory", *session.posargs, external=True)


@nox.session(name="tune-welore")
def tune_welore(session: nox.Session) -> None:
    """Run the grid that the learning rates of the WeLore suite come from."""
    lorebench(session, "run", "welore_lr", *session.posargs)


@nox.session(name="tune-all")
def tune_all(session: nox.Session) -> None:
    """Run the grids that the learning rates of bench-all come from."""
    for suite in ("pretrain_lr", "finetune_lr", "compressed_lr"):
        lorebench(session, "run", suite, *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """Fail when the peak memory of any method has grown; `-- --write` takes today's figures as baselines."""
    session.run(environment(session), "-m", "benchmarks.studies.baselines", *session.posargs, external=True)


@nox.session
def alarms(session: nox.Session) -> None:
    """See what `lorebench ab` finds in revisions made for it, and whether it raises false alarms."""
    session.run(environment(session), "-m", "benchmarks.studies.alarms", *session.posargs, external=True)


@nox.session
def overhead(session: nox.Session) -> None:
    """Measure what the harness costs beside a bare training loop, as a ratio in one process."""
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
    """Run the acceptance on a GPU, again until nothing is left: `nox -s gpu -- --minutes 9`."""
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
def readme(session: nox.Session) -> None:
    """Regenerate the tables in README and docs; `-- --check` only says whether they have drifted."""
    python, checking = environment(session), "--check" in session.posargs
    session.run(python, "-m", "harness.tables.generated", *session.posargs, external=True)
    # Exit code 1 says that a page had drifted, and has been written anew.
    fine = [0] if checking else [0, 1]
    curves = [*session.posargs, "pretrain_small"]
    session.run(python, "-m", "benchmarks.studies.curves", *curves, external=True)
    for page in (
        "benchmarks.studies.peers",
        "benchmarks.studies.memory",
        "benchmarks.studies.alarms",
    ):
        session.run(python, "-m", page, "--render-only", external=True, success_codes=fine)


@nox.session
def tables(session: nox.Session) -> None:
    """Regenerate every page that follows from files; `-- --check` only says whether any has drifted."""
    python = environment(session)
    readme(session)
    session.run(python, "-m", "benchmarks.papers.calculations", *session.posargs, external=True)


@nox.session(name="base-checkpoint")
def base_checkpoint(session: nox.Session) -> None:
    """Rebuild the embedded tokenizer and checkpoint by their recipe (about half an hour)."""
    session.run(environment(session), "-m", "benchmarks.embedded.build", *session.posargs, external=True)
