"""The harness of lorebench: it knows no method by name. `load_records` reads records as pandas frames."""

__version__ = "0.1.0"

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    del sys.path[0]  # the current folder: a file of its own there would be taken for a module of the library

from harness import imports

imports.secure()

TYPE_CHECKING = False  # that of `typing`, which takes a while to import
if TYPE_CHECKING:
    from harness.tables.frames import load_records as load_records


def __getattr__(name: str) -> object:
    """Import what programs of others ask for only when they do: no command needs it."""
    if name == "load_records":
        from harness.tables.frames import load_records

        return load_records
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
