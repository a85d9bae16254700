"""Start modules of ours as forks of one process, the forker, that has imported torch and transformers.

An import costs seconds for each worker. In the tests, `harness.imports.command` gives for a worker `python
forked.py OWNER harness.engine.worker`: it lends its folder, variables and standard streams to a fork that
runs the module, and ends as that does. The first one starts the forker, which ends with the process OWNER.
What a test starts by `python -m` has workers of its own, with all their imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from select import select

ROOT = Path(__file__).resolve().parents[2]
OWNER, WORKER = "TESTS_FORKER_OWNER", "harness.engine.worker"
#: What the phases of a worker import when they begin.
IMPORTED = (
    *("harness.engine.forecast.server", "harness.engine.contract.server", "harness.engine.run.phases"),
    *("harness.engine.run.inputs", "transformers.models.llama.modeling_llama", "pandas", "peft"),
)


def command(module: str) -> tuple[str, ...]:
    """Return the start of a command that runs one of our modules as a fork, on Linux."""
    if sys.platform != "linux":
        from harness import imports

        return imports.command(module)
    return (sys.executable, "-I", "-S", __file__, os.environ[OWNER], module)


def script(code: str, *arguments: object) -> list[str]:
    """Return a command that runs a script as a fork, on Linux."""
    start = command("-c") if sys.platform == "linux" else (sys.executable, "-c")
    return [*start, code, *map(str, arguments)]


def install() -> None:
    """Make forks of the workers that this process starts; tests that run in parallel share a forker."""
    if sys.platform == "linux":
        from harness import imports

        os.environ.setdefault(OWNER, str(os.getpid()))
        real = imports.command
        imports.command = lambda module: (command if module == WORKER else real)(module)


def ask(owner: str, arguments: list[str]) -> int:
    """Let a fork run a module, and return its exit code, negative for a signal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as forker:
        while forker.connect_ex(_address(owner)):
            with suppress(subprocess.TimeoutExpired):  # it ends at once where another was faster
                command = [sys.executable, "-P", __file__, owner]
                quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
                subprocess.Popen(command, **quiet, start_new_session=True).wait(0.2)
        request = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(forker, [request], [0, 1, 2])
        return int(forker.recv(64))


def serve(owner: str) -> None:
    """Fork for everyone who asks, until the owner ends; who goes takes the fork along."""
    forks: dict[int, tuple[int, socket.socket]] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(_address(owner))
        listener.listen(64)
        sys.path.insert(0, str(ROOT))
        os.environ[OWNER] = owner
        install()
        for module in IMPORTED:
            importlib.import_module(module)
        gc.freeze()
        ready, end = [], os.pidfd_open(int(owner))
        while end not in ready:
            ready = select([end, listener, *forks, *(asked for _, asked in forks.values())], [], [])[0]
            if listener in ready:
                asked = listener.accept()[0]
                request, streams, *_ = socket.recv_fds(asked, 1 << 20, 3)
                if not (fork := os.fork()):
                    _become(streams, *json.loads(request))
                forks[os.pidfd_open(fork)] = fork, asked
                for stream in streams:
                    os.close(stream)
            for descriptor, (fork, asked) in list(forks.items()):
                if descriptor in ready:
                    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
                    with suppress(OSError):
                        asked.send(str(code).encode())
                    asked.close()
                    os.close(descriptor)
                    del forks[descriptor]
                elif asked in ready:
                    os.kill(fork, signal.SIGKILL)


def _become(streams: list[int], arguments: list[str], folder: str, variables: dict[str, str]) -> None:
    """Run a module as Python would in a process of its own, and end."""
    from harness import imports
    from harness.engine.process import forks

    forks.become(streams)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[1:1] = imports.named_folders()
    sys.path.append(str(imports.plugin_folder()))
    sys.argv[:] = arguments
    code: object = None
    try:
        if arguments[0] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _address(owner: str) -> str:
    return f"\0lorebench-forker-{owner}"


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        code = ask(sys.argv[1], sys.argv[2:])
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
