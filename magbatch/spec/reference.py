"""The reference of the job spec: Markdown with the type, default and meaning of every field.

From a shell: `python -m magbatch.spec.reference` prints the reference. With a file's name, the command replaces the
marked block in that file: `python -m magbatch.spec.reference jobs/README.md`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from magbatch.spec.job import JobSpec

BEGIN, END = "<!-- spec reference: made by python -m magbatch.spec.reference -->", "<!-- end -->"
_KINDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    NoneType: "null",
    AwareDatetime: "date and time",
}
_BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "{} or less", "lt": "below {}"}


def reference() -> str:
    """All fields of a spec as Markdown: a heading and a table for the job itself and for each section."""
    return "\n\n".join(["### Fields of a job", _table(JobSpec, ""), *_sections(JobSpec, "")]) + "\n"


def replaced(text: str) -> str:
    """A Markdown text with its marked block made again.

    Raises:
        ValueError: The text does not have the two marks.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the marks {BEGIN} and {END} are missing: write them where the reference belongs")
    return f"{before}{begin}\n{reference()}\n{end}{after}"


def _sections(model: type[BaseModel], above: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section, path = _section(field.annotation), f"{above}{name}"
        if section is not None:
            yield f"### `{path}`"
            yield field.description or ""
            yield _table(section, f"{path}.")
            yield from _sections(section, f"{path}.")


def _table(model: type[BaseModel], above: str) -> str:
    lines = ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        shown = f"[`{name}`](#{path.replace('.', '')})" if _section(field.annotation) is not None else f"`{name}`"
        cells = [shown, _kind(field), _default(field), field.description or ""]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section in an annotation, directly, as an alternative to null, or as a list's item; None for other kinds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _kind(field: FieldInfo) -> str:
    """The type of a field in plain words, with its bounds.

    Example:
        `int | None` with `ge=1` is "whole number, 1 or more; or null".
    """
    parts = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    found = {key: getattr(mark, key) for mark in field.metadata for key in _BOUNDS if hasattr(mark, key)}
    bounds = [_BOUNDS[key].format(f"{bound:,}") for key, bound in found.items()]
    if "ge" in found and "le" in found:
        bounds = [f"{found['ge']:,} to {found['le']:,}"]
    if "gt" in found and "le" in found:
        bounds = [f"above {found['gt']:,}, up to {found['le']:,}"]
    words = [word for part in parts if part is not NoneType for word in _words(part)]
    if isinstance(field.json_schema_extra, dict) and "also" in field.json_schema_extra:  # accepted by a validator
        words.append(str(field.json_schema_extra["also"]))
    if bounds:
        return ", ".join([_listed(words), *bounds]) + ("; or null" if NoneType in parts else "")
    return _listed([*words, "null"] if NoneType in parts else words)


def _words(annotation: Any) -> list[str]:
    """Alternatives that an annotation without null allows."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [f"`{choice}`" for choice in inner]
    if origin is list:
        return ["list of sections" if _section(inner[0]) is not None else f"list of {_listed(_words(inner[0]))}s"]
    if origin is dict:
        return ["mapping"]
    if origin is Annotated:
        return _words(inner[0])
    return ["section" if _section(annotation) is not None else _KINDS[annotation]]


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if isinstance(field.default, BaseModel) else f"`{json.dumps(field.default)}`".replace('"', "")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.write(f"{name}: the spec reference is up to date\n")
    if not sys.argv[1:]:
        sys.stdout.write(reference())
