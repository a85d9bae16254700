"""Check values against a schema, and explain in one line why they do not fit."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import UserError, nearest

Model = TypeVar("Model", bound=BaseModel)


def validate(cls: type[Model], value: Any, where: str) -> Model:
    """Return a validated model; UserError says in one line what is wrong, where, and what is allowed."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(cls, error)}") from error
    except UserError as error:  # from a validator of ours, which does not know where it was called
        raise UserError(f"{where}: {error}") from error


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key comes first: it is often why another is missing.
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        inside = f" in {'.'.join(str(part) for part in parents)}" if parents else ""
        return f"unknown key {key!r}{inside}; {nearest(str(key), _fields_at(cls, parents))}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f", given {given!r}" if not isinstance(given, (dict, list)) and first["type"] != "missing" else ""
    return f"{place}: {message}{shown}" if place else f"{message}{shown}"


def _fields_at(cls: type[BaseModel], path: list[Any]) -> list[str]:
    """Return the field names of the model found by walking `path` from `cls` (union tags are looked up)."""
    models: list[type[BaseModel]] = [cls]
    for part in path:
        inner = [
            t for m in models if part in m.model_fields for t in _models_in(m.model_fields[part].annotation)
        ]
        tagged = [m for m in models if _tag(m) == part]
        models = inner or tagged or models
    return sorted({name for model in models for name in model.model_fields})


def _tag(model: type[BaseModel]) -> str | None:
    source = model.model_fields.get("source")
    values = getattr(source.annotation, "__args__", ()) if source else ()
    return values[0] if values else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
