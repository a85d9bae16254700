"""`python -m harness.cli` is `lorebench`."""

import _signal  # type: ignore[import-not-found]  # built in; `signal` itself takes a while to import
import os


def _stop(*_: object) -> None:
    os.write(2, b"lorebench: stopped; the same command continues\n")
    os._exit(130)


_heard = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _heard:
    _signal.signal(_signal.SIGINT, _stop)

from harness.cli.main import main  # noqa: E402

if _heard:
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
main()
