"""Messages for wrong fields of a spec: the path of the field, what to write, and the value found."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from magbatch.spec.secrets import without_secrets

MAX_SHOWN_CHARS = 80  # characters of a wrong value in a message
_UNION_TAGS = ("str", "list[str]")  # pydantic adds these to a path
_TEXT = ("string_type", "string_sub_type")
_WHOLE = ("int_type", "int_parsing", "int_from_float", "int_parsing_size", "whole_number")
_NUMBER = ("float_type", "float_parsing", "finite_number", "number")
_BOUNDS = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of {ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of {le:g} or less",
}

FieldPath = tuple[int | str, ...]
Written = Callable[[FieldPath], str | None]
"""Path of a value -> the value as written without quotes; None if it was quoted, or if the text is not known."""


def field_mistakes(error: ValidationError, root: type[BaseModel], written: Written) -> list[str]:
    """Describe each wrong field in one line.

    Args:
        error: Pydantic's error.
        root: Model that raised the error: a whole spec or a part of one.
        written: See `Written`; takes paths below this model.
    """
    lines: dict[str, None] = {}
    for problem in error.errors(include_url=False):
        field_path = tuple(part for part in problem["loc"] if part not in _UNION_TAGS)
        kind, value, field = problem["type"], problem["input"], _field(root, field_path)
        if kind == "extra_forbidden":
            said = f"no such field; {_glued(field_path) or _nearest(root, field_path)}"
        elif kind == "missing":
            said = f"is missing: {(field.description if field else None) or 'it has no default'}"
        else:
            said = _wrong(kind, problem["msg"], problem.get("ctx", {}), field, value, written(field_path))
        path = path_of(field_path)
        lines[f"{path}: {said}" if path else said] = None
    return list(lines)


def path_of(field_path: FieldPath) -> str:
    """Path of a field as in `--set`, with positions of list items in brackets: `replicas.prefer[0].market`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in field_path)
    return path.removeprefix(".")


def shown(value: Any) -> str:
    """A wrong value in YAML's words, cut after MAX_SHOWN_CHARS characters and without secrets."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    text = str(value) if isinstance(value, date) else without_secrets(text)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def did_you_mean(name: str, names: Iterable[str], *, instead: str) -> str:
    """Hint for a misspelt name.

    Args:
        name: The wrong name.
        names: The right names.
        instead: Hint if no right name is similar.
    """
    close = difflib.get_close_matches(name, [*names], n=1)
    return f"did you mean `{close[0]}`?" if close else instead


def as_yaml_reads(value: Any, written: str | None) -> str | None:
    """Message for a value that looks like text but is read by YAML as another type; None for other values."""
    kinds = [(bool, shown(value)), (int | float, "a number"), (date, "a date"), (type(None), "nothing")]
    read_as = next((words for kind, words in kinds if isinstance(value, kind)), None)
    if read_as is None:
        return None
    if written:
        return f'YAML reads an unquoted {written} as {read_as}; write "{written}"'
    return "is empty; write text" if value is None else f"write text, in quotes: YAML reads it as {read_as}"


def _wrong(
    kind: str, said: str, bounds: dict[str, Any], field: FieldInfo | None, value: Any, written: str | None
) -> str:
    """Message for a wrong value: what to write, and the value found."""
    it_is = "" if isinstance(value, dict | list) else f" (it is {shown(value)})"
    if kind in _TEXT:
        return as_yaml_reads(value, written) or f"write text{it_is}"
    if kind == "literal_error":
        return _choice(field, value, written) + it_is
    if kind in _WHOLE or (kind in _BOUNDS and field is not None and int in _types(field.annotation)):
        words = _BOUNDS.get(kind, "a whole number").replace("a number", "a whole number")
        return f"write {words.format(**bounds)}{it_is}"
    if kind in _NUMBER or kind in _BOUNDS:
        return f"write {_BOUNDS.get(kind, 'a number').format(**bounds)}{it_is}"
    if kind.startswith("bool_"):
        return f"write true or false{it_is}"
    if kind == "list_type":
        return f"write a list, such as [{value if isinstance(value, str) else 'a, b'}]{it_is}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        names = _section(field)
        return f"write a group of fields{f', such as {names}' if names else ''}{it_is}"
    if kind == "string_too_short":
        return "is empty; write text, or leave it out"
    if kind.startswith(("datetime_", "timezone_", "date_")):
        return f"write a date and time with its zone, such as 2026-11-30T08:00:00+01:00{it_is}"
    own = kind == "value_error"
    return (said.removeprefix("Value error, ") if own else f"is not what this field takes: {said}") + it_is


def _choice(field: FieldInfo | None, value: Any, written: str | None) -> str:
    choices = [str(choice) for choice in _choices(field.annotation if field else None)]
    if written in choices:
        return as_yaml_reads(value, written) or ""
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    listed = " or ".join(filter(None, [", ".join(choices[:-1]), *choices[-1:]]))
    return f"did you mean {close[0]}? It is one of {listed}" if close else f"write {listed}"


def _types(annotation: Any) -> set[Any]:
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return set(parts)


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _section(field: FieldInfo | None) -> str:
    """First fields of a section, as a hint."""
    model = _model(field.annotation) if field is not None else None
    return "" if model is None else "{" + ", ".join(f"{name}: …" for name in list(model.model_fields)[:2]) + "}"


def _model(annotation: Any) -> type[BaseModel] | None:
    """Section in a field's annotation: the field itself or its list items; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, get_args(annotation))), None)


def _owner(root: type[BaseModel], field_path: FieldPath) -> type[BaseModel] | None:
    """Section that contains a path; None if the path is not inside a section."""
    node: type[BaseModel] | None = root
    for part in field_path[:-1]:
        if not isinstance(part, int):
            field = node.model_fields.get(part) if node is not None else None
            node = _model(field.annotation) if field is not None else None
    return node


def _field(root: type[BaseModel], field_path: FieldPath) -> FieldInfo | None:
    names = [part for part in field_path if isinstance(part, str)]
    owner = _owner(root, (*names[:-1], "")) if names else None
    return owner.model_fields.get(names[-1]) if owner is not None else None


def _glued(field_path: FieldPath) -> str:
    """Hint if YAML has read `{cron:6}` as one word; empty otherwise."""
    name, colon, value = str(field_path[-1]).partition(":")
    if not colon or not name.isidentifier():
        return ""
    return f"YAML wants a blank after the colon: write `{name}: {value.strip() or '...'}`"


def _nearest(root: type[BaseModel], field_path: FieldPath) -> str:
    owner, name = _owner(root, field_path), str(field_path[-1])
    fields = list(owner.model_fields) if owner is not None else []
    elsewhere = [path for path in _paths(root) if path.rpartition(".")[2] == name]
    instead = f"did you mean `{elsewhere[0]}`?" if elsewhere else f"the fields here are {', '.join(fields)}"
    return did_you_mean(name, fields, instead=instead)


def _paths(root: type[BaseModel], above: str = "") -> Iterator[str]:
    """Paths of all fields."""
    for name, field in root.model_fields.items():
        yield above + name
        inner = _model(field.annotation)
        if inner is not None:
            yield from _paths(inner, f"{above}{name}.")
