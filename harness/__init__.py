"""The harness of lorebench: it knows no method by name."""

__version__ = "0.1.0"

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    del sys.path[0]  # the current folder: a file of its own there would be taken for a module of the library

from harness import imports

imports.secure()
