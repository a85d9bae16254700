"""Check values against a schema, and explain in one line why they do not fit."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.credentials import shown
from harness.errors import UserError, did_you_mean, nearest
from harness.strict_yaml import Written

Model = TypeVar("Model", bound=BaseModel)
Path = tuple[int | str, ...]

#: The likeness of a key to one of its own section from which it is no key of another section.
MISSPELT = 0.8
_NUMBER = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_SECTION = "a section, as {{key: value}}"
#: What is allowed, by the error type of pydantic; in braces what pydantic knows about it.
_ALLOWED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of at most 19 digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text, in quotes where it looks like a number",
    "path_type": "a path",
    "list_type": "a list, as [a, b]",
    "tuple_type": "a list, as [a, b]",
    "set_type": "a list, as [a, b]",
    "frozen_set_type": "a list, as [a, b]",
    "dict_type": _SECTION,
    "mapping_type": _SECTION,
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "none_required": "null",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
}


def validate(cls: type[Model], value: Any, where: str) -> Model:
    """Return a validated model; UserError says in one line what is wrong, where, and what is allowed.

    `value` is plain, or `Written`: then the message names the line or the option that is to blame instead of
    `where`. Text in place of a number, as in `rank: "8"`, is refused, though pydantic would convert it.
    """
    plain = value.plain() if isinstance(value, Written) else value
    try:
        _refuse_conversions(cls, plain)
        return cls.model_validate(plain)
    except ValidationError as error:
        path, key, problem = _explain(cls, error)
    except _ConversionError as error:
        path, key, problem = error.path, False, f"{_dotted(error.path)}: {error}"
    except UserError as error:  # from a validator of ours, which does not know where it was called
        path, key, problem = _method_or_root(plain), False, str(error)
    place = value.place(path, key) if isinstance(value, Written) else where
    raise UserError(f"{place}: {problem}", path)


class Validator(Generic[Model]):
    """Validates many values of one class, a field that several of them share only once.

    Shared is a field that is the same object. `needed` are values of the required fields, so that another can
    be validated alone.
    """

    def __init__(self, cls: type[Model], needed: Mapping[str, Any], where: str) -> None:
        self._cls, self._needed, self._where = cls, needed, where
        self._known: dict[tuple[str, Written], Any] = {}

    def validate(self, value: Written) -> Model:
        """Return a validated model; UserError as from `validate`."""
        try:
            fields = {name: self.field(name, item) for name, item in value.value.items()}
            return self._cls.model_validate(fields)
        except (ValidationError, UserError):
            return validate(self._cls, value, self._where)  # knows the place of the first mistake

    def field(self, name: str, item: Written) -> Any:
        """Return the value of a field; UserError that names no line for one that is invalid."""
        key = name, item
        if key not in self._known:
            alone = validate(self._cls, {**self._needed, name: item.plain()}, self._where)
            self._known[key] = getattr(alone, name)
        return self._known[key]


class _ConversionError(Exception):
    """A value of a type that is not allowed at a path."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(problem)
        self.path = path


def _method_or_root(value: Any) -> Path:
    """Return the path that a UserError of a validator is about: only that of a method's name raises one."""
    return ("method",) if isinstance(value, dict) and "method" in value else ()


def _dotted(path: Sequence[int | str]) -> str:
    return ".".join(map(str, path))


def _explain(cls: type[BaseModel], error: ValidationError) -> tuple[Path, bool, str]:
    """Return the path of the first mistake, whether its key is to blame, and the mistake in words."""
    # A misspelt key comes first: it is often why another is missing.
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    kind, context = first["type"], first.get("ctx", {})
    own_key = first["loc"][-1:] == ("[key]",)  # what is wrong is the key of a dict, not the value
    path, models = _walk(cls, first["loc"][:-1] if own_key else first["loc"])
    place = _dotted(path)
    if kind == "extra_forbidden":
        *parents, name = path
        inside = f" in {_dotted(parents)}" if parents else ""
        source = [f" of {_tagged_by(model)} {_tag(model)}" for model in models if _tag(model) in first["loc"]]
        # Fields that a representation leaves out are filled by the code: nobody is told of them.
        known = {name for model in models for name, field in model.model_fields.items() if field.repr}
        misspelt = difflib.get_close_matches(str(name), known, cutoff=MISSPELT)
        elsewhere = [] if misspelt or len(parents) > 1 or source else settings_named(str(name), cls)
        hint = did_you_mean(elsewhere) if elsewhere else nearest(str(name), known)
        return path, True, f"unknown key {shown(name)}{inside}{''.join(source)}; {hint}"
    if kind == "missing":
        return path[:-1], False, f"{place} is required and missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key, given = context["discriminator"].strip("'"), first["input"]
        if kind == "union_tag_invalid":
            problem = f"give {context['expected_tags']}, not {shown(context['tag'])}"
            return (*path, key), False, f"{place}.{key}: {problem}"
        tags = ", ".join(repr(_tag(model)) for model in models if _tag(model))
        misspelt = difflib.get_close_matches(key, map(str, given), 1) if isinstance(given, dict) else []
        instead = f", not {shown(misspelt[0])}" if misspelt else ""
        return path, False, f"{place}: give a section with a {key}{instead}: one of {tags}"
    if kind in ("too_short", "too_long"):
        bound = f"least {context['min_length']}" if kind == "too_short" else f"most {context['max_length']}"
        problem = f"give a list with at {bound} of them, not {context['actual_length'] or 'an empty one'}"
    elif kind in _ALLOWED:
        given = "nothing" if first["input"] is None else shown(first["input"])
        problem = f"give {_ALLOWED[kind].format(**context)}, not {given}"
    else:
        message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        given = first["input"]
        problem = message if kind == "value_error" else f"{message}, given {shown(given)}"
    return path, own_key, f"{place}: {problem}" if place else problem


def settings_named(name: str, cls: type[BaseModel]) -> list[str]:
    """Return the dotted settings in the sections of a model whose last part is a name."""
    return [
        f"{section}.{name}"
        for section, field in cls.model_fields.items()
        if any(name in model.model_fields for model in _choices(field.annotation) if _is_model(model))
    ]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _walk(cls: type[BaseModel], location: Sequence[int | str]) -> tuple[Path, list[type[BaseModel]]]:
    """Return the path that a person wrote, without the tags of unions, and the models around its end."""
    models: list[type[BaseModel]] = [cls]
    path: list[int | str] = []
    for part in location:
        tagged = [model for model in models if _tag(model) == part]
        if tagged and len(models) > 1:  # else a field may be named like the tag
            models = tagged
            continue
        path.append(part)
        inner = [
            found
            for model in models
            if part in model.model_fields
            for found in _models_in(model.model_fields[str(part)].annotation)
        ]
        models = inner or models
    return tuple(path), models


def _tagged_by(model: type[BaseModel]) -> str | None:
    """Return the field that tells a section from the others of its union, if there is one."""
    for name in ("source", "type"):
        field = model.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is Literal:
            return name
    return None


def _tag(model: type[BaseModel]) -> str | None:
    name = _tagged_by(model)
    values = get_args(model.model_fields[name].annotation) if name else ()
    return values[0] if values and isinstance(values[0], str) else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if _is_model(annotation):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


# ------------------------------------------------------------------ text is no number, a number no boolean
def _refuse_conversions(cls: type[BaseModel], value: Any, path: Path = ()) -> None:
    """Raise for text or a boolean where only a number fits, and for anything else where a boolean does."""
    for name, item in value.items() if isinstance(value, dict) else ():
        if name in cls.model_fields:
            _refuse_conversion(_kinds(cls, name), item, (*path, name))


@dataclass(frozen=True)
class _Kinds:
    """What a value may be: one of some types, a list of items of some kinds, or a section of some models."""

    types: frozenset[Any]
    items: tuple[_Kinds, ...]
    models: tuple[type[BaseModel], ...]

    @classmethod
    def of(cls, annotation: Any, inside: bool = False) -> _Kinds:
        """Return the kinds of an annotation, or of the items of the list that it describes."""
        parts = get_args(annotation) if inside else (annotation,)
        choices = [choice for part in parts for choice in _choices(part) if choice is not ...]
        lists = [choice for choice in choices if get_origin(choice) in (list, tuple)]
        types = frozenset(choice for choice in choices if choice not in lists)
        return cls(types, tuple(cls.of(each, inside=True) for each in lists), tuple(_models_in(annotation)))


@functools.cache
def _kinds(cls: type[BaseModel], name: str) -> _Kinds:
    return _Kinds.of(cls.model_fields[name].annotation)


def _refuse_conversion(kinds: _Kinds, value: Any, path: Path) -> None:
    """Raise for one value, or for one within it."""
    if isinstance(value, dict):
        for model in kinds.models:
            if _tag(model) in (None, value.get(_tagged_by(model))):
                _refuse_conversions(model, value, path)
    elif isinstance(value, list):
        for inner in kinds.items:
            for number, item in enumerate(value):
                _refuse_conversion(inner, item, (*path, number))
    elif isinstance(value, str | bool | int | float) and type(value) not in kinds.types:
        numbers = [kind for kind in (int, float, bool) if kind in kinds.types]
        fits = bool not in (type(value), *numbers) and not isinstance(value, str)
        if numbers and not fits and kinds.types <= {int, float, bool, type(None)}:
            kind = _NUMBER[("float" if float in numbers else numbers[0].__name__)]
            given = f"the text {shown(value)}" if isinstance(value, str) else shown(value)
            raise _ConversionError(path, f"give {kind}, not {given}")


def _choices(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, without annotations."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for part in get_args(annotation) for choice in _choices(part)]
    return [annotation]
