"""Find the source files of a plug-in: its module and all that this loads, but installed packages. No torch.

Imports are read from the source, those inside functions included, so the answer does not depend on what else
a process has imported. Files beside a module count that the module mentions by name; where a module is loaded
by a computed name, so do all modules beside it.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from harness import imports

#: Functions that load a module by its name or path.
LOADERS = {
    "import_module",
    "__import__",
    "spec_from_file_location",
    "run_path",
    "run_module",
    "walk_packages",
}
LOADERS |= {"iter_modules", "exec"}
LONGEST_NAME = 200


def source_files(module: str) -> dict[str, Path]:
    """Return the files of a plug-in by the name of their module, or by their own name for other files.

    Left out are lorebench, the standard library and installed packages but the plug-in's own. A module that
    cannot be found is left out as well: importing it says what is wrong.
    """
    found: dict[str, Path] = {}
    top, waiting, seen = module.partition(".")[0], [module], set[str]()
    foreign: dict[str, bool] = {top: False}
    while waiting:
        name = waiting.pop()
        own = name.partition(".")[0]
        if own not in foreign:
            spec = _spec(own)
            foreign[own] = spec is None or _is_installed(spec)
        if name in seen or foreign[own]:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        spec = _spec(name)
        if spec is None or not spec.has_location or spec.origin is None:
            continue
        path = Path(spec.origin)
        if path.is_file() and not _is_lorebench(path):
            found[name] = path
            package = name if spec.submodule_search_locations is not None else parent
            waiting += _needs(path, package, found)
    return found


def package_of(module: str) -> str | None:
    """Return the installed package that a module belongs to, by the name that pip has for it, else None."""
    top = module.partition(".")[0]
    spec = _spec(top)
    if spec is None or not _is_installed(spec):
        return None
    return next(iter(_packages().get(top, ())), top)


@cache
def _packages() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module without importing anything: by what is loaded, else on the path."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            last = [str(imports.plugin_folder())]
            return importlib.util.find_spec(name) or importlib.machinery.PathFinder.find_spec(name, last)
        above = _spec(parent)
        places = above.submodule_search_locations if above else None
        return None if places is None else importlib.machinery.PathFinder.find_spec(name, list(places))
    except (ImportError, ValueError, AttributeError):
        return None


def _is_installed(spec: importlib.machinery.ModuleSpec) -> bool:
    """Return whether a top-level module belongs to the interpreter, an installed package or lorebench."""
    places = [spec.origin] if spec.has_location and spec.origin else spec.submodule_search_locations
    return not places or any(
        _is_lorebench(Path(place)) or _below(Path(place), _installed()) for place in places
    )


def _is_lorebench(path: Path) -> bool:
    return _below(path, tuple(imports.ROOT / name for name in imports.OURS))


@cache
def _installed() -> tuple[Path, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(path).resolve() for path in paths if path)


def _below(path: Path, folders: tuple[Path, ...]) -> bool:
    found = path.resolve()
    return any(found.is_relative_to(folder) for folder in folders)


def _needs(path: Path, package: str, found: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a module may import; add the files that it mentions to `found`."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # importing it says what is wrong
    computed = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node, package)
        elif isinstance(node, ast.Call) and _called(node) in LOADERS:
            named = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from (_absolute(name, package) for name in named if isinstance(name, str))
            computed = computed or not named
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            _mention(path.parent, node.value, found)
    if computed:
        prefix = f"{package}." if package else ""
        beside = (other.stem for other in sorted(path.parent.glob("*.py")) if other.stem.isidentifier())
        yield from (f"{prefix}{stem}" for stem in beside if stem != "__init__")


def _from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    parts = package.split(".") if package else []
    base = ".".join([*parts[: len(parts) - node.level + 1], node.module or ""]) if node.level else node.module
    base = (base or "").strip(".")
    if base:
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _absolute(name: str, package: str) -> str:
    return f"{package}{name}" if name.startswith(".") else name


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _mention(folder: Path, text: str, found: dict[str, Path]) -> None:
    if not 0 < len(text) <= LONGEST_NAME or "\0" in text or "\n" in text:
        return
    path = folder / text
    try:
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            found.setdefault(text, path)
    except OSError:
        return
