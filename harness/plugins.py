"""Find a method by its name, build it, and hold what its author wrote to the contract. No torch.

What is wrong with a method's file, class, options or caps is known before anything runs, so it is a
UserError; every message names the author's file and line.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar, get_args

from harness import imports
from harness.config import TrainConfig
from harness.errors import UserError, nearest, one_line
from harness.method import Caps, Method, MethodConfig
from harness.registry import check_name
from harness.validation import validate

T = TypeVar("T")

#: What the harness calls a method with, by member.
CALLED = {
    member: tuple(inspect.signature(getattr(Method, member)).parameters)[1:]
    for member in ("prepare", "stepper", "export")
}
#: A logger that says at import that an optional package is missing, which nothing here needs: on CPUs with
#: AVX-512 in bfloat16, bitsandbytes would multiply matrices of 4 bits by its kernels.
LOGS_AT_IMPORT = ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward")
#: The fields of `Caps` that are yes or no.
SWITCHES = (
    "grad_accum",
    "grad_clip",
    "ddp",
    "value_dependent",
    "per_layer",
    "own_updates",
    "merges",
    "fixed_length",
)


def find(name: str) -> type[Method]:
    """Return the class of a method by its registered name or by "module:Class"; UserError as `find_class`."""
    return find_class(f"method {name!r}", check_name(name), Method, plug_in=":" in name)


def find_class(what: str, target: str, base: type[T], plug_in: bool = True) -> type[T]:
    """Return the subclass of `base` that is named as "module:Class".

    UserError, which begins with `what`, for a name of another form, a module that cannot be imported or, of a
    plug-in, is hidden by another, and for a class that is missing or no subclass.
    """
    module_name, _, class_name = target.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise UserError(f"{what}: write module:Class, as in my_method:MyMethod")
    if plug_in:
        imports.add_plugins()
    module = _import(what, module_name)
    if plug_in:
        _check_not_hidden(what, module_name)
    found = getattr(module, class_name, None)
    if inspect.isclass(found) and issubclass(found, base):
        return found
    wanted = f"subclass of {base.__module__}.{base.__qualname__}"
    if found is not None:
        raise UserError(f"{what}: {target!r} is not a {wanted}{place(found)}")
    theirs = [key for key, item in vars(module).items() if _is_class_of(item, base, module)]
    hint = nearest(class_name, theirs) if theirs else f"it has no {wanted}"
    raise UserError(f"{what}: {_file_of(module)} has no class {class_name!r}; {hint}")


def build(name: str, options: Mapping[str, Any]) -> Method:
    """Return a configured method; UserError for wrong options, and for a class that breaks the contract."""
    cls = find(name)
    where = f"method {name}"
    config_class = options_class(name, options)
    config = calling(
        f"{where}: Config", lambda: validate(config_class, dict(options), where=where), config_class
    )
    method = calling(f"{where}: {cls.__name__}(config)", lambda: cls(config), cls)
    if getattr(method, "config", None) is not config:
        raise UserError(
            f"{where}: __init__ left no config; call super().__init__(config) in it{place(cls.__init__)}"
        )
    _check_members(where, method)
    _check_caps(where, method)
    return method


def options_class(name: str, options: Mapping[str, Any]) -> type[MethodConfig]:
    """Return the class that validates the options of a method; UserError where it is none."""
    cls = find(name)
    where = f"method {name}"
    if not _is_config(cls.Config):
        given = shown(cls.Config)
        raise UserError(
            f"{where}: Config is {given}, not a subclass of harness.method.MethodConfig{place(cls)}"
        )
    chosen = calling(f"{where}: config_for", lambda: cls.config_for(options), cls.config_for)
    if not _is_config(chosen):
        raise UserError(
            f"{where}: config_for returned {shown(chosen)}, not a subclass of "
            f"harness.method.MethodConfig{place(cls.config_for)}"
        )
    return chosen


def complete_options(name: str, method: Method) -> dict[str, Any]:
    """Return all options as JSON values; UserError for a default that JSON or its own type refuses."""
    config = method.config

    def dumped() -> dict[str, Any]:
        return config.model_dump(mode="json")

    options = calling(f"method {name}: an option that JSON cannot hold", dumped, type(config))
    try:
        validate(type(config), options, where=f"method {name}")
    except UserError as error:
        raise UserError(f"{error}: a default that its own type refuses{place(type(config))}") from error
    return options


def import_libraries(name: str, method: Method) -> None:
    """Import the packages that a method names in `libraries`."""
    for library in method.libraries:
        import_one = functools.partial(import_library, library)
        calling(f"method {name}: library {library}", import_one, type(method))


def import_library(name: str) -> ModuleType:
    """Import a module that may import bitsandbytes, whose line on an optional package that is missing is no
    news to anyone; whatever else is said or raised stays.
    """
    if (known := sys.modules.get(name)) is not None:
        return known
    logger = logging.getLogger(LOGS_AT_IMPORT[0])
    logger.addFilter(_is_news)
    try:
        return importlib.import_module(name)
    finally:
        logger.removeFilter(_is_news)


def _is_news(said: logging.LogRecord) -> bool:
    error = said.args[0] if isinstance(said.args, tuple) and said.args else None
    lacking = isinstance(error, ModuleNotFoundError) and error.name == "kernels"
    return not (lacking and str(said.msg).startswith(LOGS_AT_IMPORT[1]))


# ------------------------------------------------------------------------------------- what is said
def calling(what: str, call: Callable[[], Any], near: object) -> Any:
    """Return the value of a call into an author's code; an exception becomes a UserError."""
    try:
        return call()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{what}: {said}{place_of(error, near)}") from error


def place(*things: object) -> str:
    """Return where the first of some classes, functions or objects is defined as " (file:line)".

    First is one in an author's own file, for a member that is inherited its class, then one that ships or is
    installed; a place in the harness would name nothing that an author wrote. "" where there is none.
    """
    owners = (getattr(thing, "__self__", None) for thing in things)
    found = [_defined(thing) for thing in (*things, *owners) if thing is not None]
    known = [each for each in found if each and not _is_of_harness(each[0])]
    own = [each for each in known if _is_author_file(each[0])]
    return next((f" ({_short(file)}:{line})" for file, line in [*own, *known]), "")


def _defined(thing: object) -> tuple[str, int] | None:
    """Return the file and line where a class or function, or the class of an object, is defined."""
    thing = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
    thing = inspect.unwrap(thing) if inspect.isfunction(thing) else thing  # as by @torch.no_grad()
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)
    try:
        file = inspect.getsourcefile(thing)
        return (file, inspect.getsourcelines(thing)[1]) if file else None
    except (OSError, TypeError):
        return None


def place_of(error: BaseException, near: object = None) -> str:
    """Return the last line of an author's own files that an exception passed, else of a method that ships,
    else the place of `near`.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({_short(error.filename)}:{error.lineno})"
    passed = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [each for each in passed if _is_author_file(each[0])]
    shipped = [each for each in passed if _is_within(each[0], imports.ROOT / "methods")]
    for file, line in [*own[-1:], *shipped[-1:]]:
        return f" ({_short(file)}:{line})"
    return place(near) if near is not None else ""


def shown(value: object) -> str:
    """Return a value in a few words: itself where it is short, else its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:40]
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def _is_author_file(file: str) -> bool:
    """Return whether a file is neither of the harness and what ships nor of Python and what is installed."""
    installed = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    known = (imports.ROOT / "harness", imports.ROOT / "methods", *map(Path, installed))
    return Path(file).is_file() and not any(_is_within(file, folder) for folder in known)


def _is_of_harness(file: str) -> bool:
    return _is_within(file, imports.ROOT / "harness")


def _is_within(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder.resolve())


def _short(file: str) -> str:
    """Return a file's name below the folder of plug-ins, else its last part: records name no user."""
    path, folder = Path(file), imports.plugin_folder()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _file_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if file is None or Path(file).name == "__init__.py":
        return f"module {module.__name__!r}"
    return _short(file)


# ------------------------------------------------------------------------------------------- checks
def _import(what: str, module_name: str) -> ModuleType:
    try:
        return import_library(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{what}: cannot import module {module_name!r}: {error}; it is looked for in "
                f"{imports.plugin_folder()}, PYTHONPATH and what is installed"
            ) from error
        _refuse_import(what, module_name, error)
    except (Exception, SystemExit) as error:
        _refuse_import(what, module_name, error)


def _refuse_import(what: str, module_name: str, error: BaseException) -> NoReturn:
    said = f"{type(error).__name__}: {one_line(error)}"
    raise UserError(f"{what}: {module_name} cannot be imported: {said}{place_of(error)}") from error


def _check_not_hidden(what: str, module_name: str) -> None:
    """Refuse a module that is not the one in the folder of plug-ins though that has one of this name."""
    top = module_name.partition(".")[0]
    found = getattr(sys.modules[top], "__file__", None)
    for file in (imports.plugin_folder() / f"{top}.py", imports.plugin_folder() / top / "__init__.py"):
        if file.is_file() and not (found and Path(found).exists() and file.samefile(found)):
            other = found or "a module that is built into Python"
            raise UserError(f"{what}: {file} is hidden by {other}; rename it")


def _is_config(item: object) -> bool:
    return inspect.isclass(item) and issubclass(item, MethodConfig)


def _is_class_of(item: object, base: type, module: ModuleType) -> bool:
    own = module.__name__.partition(".")[0]
    found = inspect.isclass(item) and issubclass(item, base) and item is not base
    return found and getattr(item, "__module__", "").partition(".")[0] == own


def _check_members(where: str, method: Method) -> None:
    for member, arguments in CALLED.items():
        function = getattr(method, member, None)
        check_call(where, member, function, arguments, type(method), UserError)
    for member, kind, wanted in (
        ("source", str, "a text"),
        ("approximations", Mapping, "a mapping of names to descriptions"),
        ("libraries", tuple, "a tuple of names"),
    ):
        if not isinstance(value := getattr(method, member), kind):
            raise UserError(f"{where}: {member} is {shown(value)}, not {wanted}{place(type(method))}")


def check_call(
    where: str,
    member: str,
    function: object,
    arguments: Sequence[str],
    owner: type,
    error: type[Exception],
) -> None:
    """Raise `error` for a member that is missing or cannot be called with these arguments."""
    wanted = f"{member}({', '.join(arguments)})"
    if function is None:
        raise error(f"{where}: {owner.__name__} has no {wanted}{place(owner)}")
    if not callable(function):
        raise error(f"{where}: {member} is {shown(function)}, not the function {wanted}{place(owner)}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as problem:
        raise error(f"{where}: {member} is called as {wanted}: {problem}{place(function)}") from problem
    except ValueError:  # a builtin without a signature
        return


def _check_caps(where: str, method: Method) -> None:
    """Refuse caps that are no `Caps`, or have fields of other types than theirs."""
    member = inspect.getattr_static(type(method), "caps", None)
    near = member if isinstance(member, property) or inspect.isroutine(member) else type(method)
    caps = calling(f"{where}: caps", lambda: method.caps, near)
    if not isinstance(caps, Caps):
        hint = "; write @property above it" if inspect.isroutine(caps) else ""
        raise UserError(f"{where}: caps is {shown(caps)}, not a Caps{hint}{place(near)}")
    stages = get_args(TrainConfig.model_fields["stage"].annotation)
    for name, right, wanted in (
        ("stages", _is_set_of(caps.stages, stages), f"a set of {', '.join(stages)}"),
        ("state_bits", _is_set_of(caps.state_bits, (8, 16, 32)), "a set of 8, 16, 32"),
        *(
            (name, _is_count(getattr(caps, name)), "None or a number of updates from 1")
            for name in ("period", "mean_period")
        ),
        *((name, isinstance(getattr(caps, name), str), "a text") for name in ("because", "no_export")),
        *((name, isinstance(getattr(caps, name), bool), "True or False") for name in SWITCHES),
    ):
        if not right:
            given = shown(getattr(caps, name))
            raise UserError(f"{where}: caps.{name} is {given}, not {wanted}{place(near)}")


def _is_set_of(value: object, known: Sequence[object]) -> bool:
    return isinstance(value, (frozenset, set)) and value <= set(known)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
