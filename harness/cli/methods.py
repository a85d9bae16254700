"""The command `lorebench methods`: list the methods, or explain the options of one."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import BaseModel

from harness.cli.options import method_options
from harness.errors import UserError, nearest
from harness.strict_yaml import in_line

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from harness.method import Method, MethodConfig

#: Columns of a line of text at most, also on a terminal that has more.
WIDTH = 100
#: Bounds of JSON schemas as signs.
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
TYPES = {
    "integer": "whole number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "section",
}


def complete(incomplete: str) -> list[str]:
    """Return the methods whose names begin as typed."""
    from harness.registry import available

    return [name for name in available() if name.startswith(incomplete)]


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            help="Explain the options of this method; module:Class for a plug-in.",
            autocompletion=complete,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Explain the options that there are beside this one; repeatable.",
        ),
    ] = None,
) -> None:
    """List the methods with their options, stages and sources, or explain the options of one."""
    from harness.cli import show
    from harness.plugins import find
    from harness.registry import available

    if name is not None:
        lines = explained(name, find(name), method_options(settings))
        width = min(WIDTH, show.console().width)
        typer.echo("\n".join(part for line in lines for part in _wrapped(line, width)))
        return
    if settings:
        raise UserError("--set is about the options of one method; name it, as in lorebench methods METHOD")
    rows = []
    for known in sorted(available()):
        cls = find(known)
        fields = {key: field for key, field in cls.Config.model_fields.items() if not field.exclude}
        options = "\n".join(f"{key}: {_default(field)}" for key, field in fields.items())
        rows.append((known, options, _stages(cls), _source(cls)))
    show.table(("name", "options, with defaults", "stages", "source"), rows)


def _default(field: FieldInfo) -> str:
    """Return the default of an option as a suite would have it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):  # a section: its type alone where all else is as it would be
        value = value.model_dump(include={"type", *_given(value)})
        value = value.get("type") if len(value) == 1 and "type" in value else value
    return in_line(value)


def _given(section: BaseModel) -> list[str]:
    """Return the options of a section that are not what they would be."""
    fields = type(section).model_fields
    return [name for name, field in fields.items() if getattr(section, name) != field.get_default()]


def sections(annotation: Any) -> list[type[MethodConfig]]:
    """Return the classes of the sections that an option may be."""
    from harness.method import MethodConfig

    if isinstance(annotation, type) and issubclass(annotation, MethodConfig):
        return [annotation]
    return [found for part in get_args(annotation) for found in sections(part)]


def _wrapped(line: str, width: int) -> list[str]:
    """Return a line as several, broken at blanks where it is longer; all but the first are indented."""
    indent = " " * (len(line) - len(line.lstrip()) or 2)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _stages(cls: type[Method]) -> str:
    try:
        return ", ".join(sorted(cls(cls.Config()).caps.stages))
    except ValueError:  # an option without a default
        return "-"


def _source(cls: type[Method]) -> str:
    """Return the source of a method, and the versions of the packages that it is made of."""
    found = []
    for package in cls.libraries:
        with suppress(PackageNotFoundError):  # a module that is not named after its package
            found.append(f"{package} {version(package)}")
    installed = f" Installed: {', '.join(found)}." if found else ""
    return " ".join(cls.source.split()) + installed


def explained(name: str, cls: type[Method], given: Mapping[str, Any]) -> list[str]:
    """Return lines of any length: a method's stages, its source, and of each option what it may be and does.

    `given` are options that may decide which others there are; without any, the choices follow. UserError for
    one that the method does not have.
    """
    from harness.plugins import calling, options_class

    config = options_class(name, given) if given else cls.Config
    if unknown := next((key for key in given if key not in config.model_fields), None):
        raise UserError(f"method {name}: unknown key {unknown!r}; {nearest(unknown, config.model_fields)}")
    said = cls.__doc__ or getattr(inspect.getmodule(cls), "__doc__", None) or ""
    lines = [f"{name}: {' '.join(said.split())}".removesuffix(": "), f"stages: {_stages(cls)}"]
    lines += [f"source: {_source(cls)}"]
    choices = {} if given else calling(f"method {name}: choices", cls.choices, cls.choices)
    lines += [""] * bool(choices) + [": ".join(item) for item in choices.items()]
    schemas: dict[str, Any] = {}
    with suppress(ValueError):  # a type of a plug-in that has no schema
        schemas = config.model_json_schema(mode="validation")["properties"]
    described = descriptions(config)
    for option, field in config.model_fields.items():
        if field.exclude:  # it only says why it cannot be used
            continue
        within = sections(field.annotation)
        types = " or ".join(str(each.model_fields["type"].default) for each in within if _typed(each))
        may_be = types or (allowed(schemas[option]) if option in schemas else str(field.annotation))
        lines += ["", _option(option, may_be, field)]
        if said := described.get(option, field.description or ""):
            lines += [f"  {said}"]
        for each in filter(_typed, within):
            lines += _section(each)
    return lines


def _typed(section: type[MethodConfig]) -> bool:
    return "type" in section.model_fields


def _option(name: str, may_be: str, field: FieldInfo) -> str:
    required = "required" if field.is_required() else f"default {_default(field)}"
    return f"{name}: {may_be}; {required}"


def _section(section: type[MethodConfig]) -> list[str]:
    """Return lines on a section: what it does, and its options."""
    fields, described = section.model_fields, descriptions(section)
    lines = [f"  {fields['type'].default}: {' '.join((section.__doc__ or '').split())}"]
    schemas = section.model_json_schema(mode="validation")["properties"]
    for name, field in fields.items():
        if name != "type":
            lines.append(f"    {_option(name, allowed(schemas[name]), field)}. {described.get(name, '')}")
    return lines


def allowed(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(allowed, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(in_line, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        if "prefixItems" in schema:  # of a fixed length
            return f"list of {' and '.join(map(allowed, schema['prefixItems']))}"
        return f"list of {allowed(schema.get('items', {}))}"
    kind = TYPES.get(schema.get("type", "anything"), schema.get("type", "anything"))
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema)
    return f"{kind} {bounds}".rstrip()


def descriptions(cls: type[MethodConfig]) -> dict[str, str]:
    """Return the docstrings that stand below the options of a class and of those it inherits from.

    pydantic would read them at each import, which every command pays.
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue  # no source, as for `object`
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = getattr(below.value, "value", None)
                if isinstance(text, str):
                    found[ast.unparse(field.target)] = " ".join(text.split())
    return found
