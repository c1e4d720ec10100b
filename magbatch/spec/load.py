"""A YAML text -> a job spec, or one message with the path of each wrong field and what would be right."""

import difflib
import os
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from magbatch.errors import SpecError
from magbatch.spec.job import JobSpec
from magbatch.spec.secrets import secrets
from magbatch.spec.sections import NEW, is_remote
from magbatch.spec.text import TextError, values


def load(path: str, overrides: list[str] | None = None) -> JobSpec:
    """Read and check a spec file.

    Args:
        path: The YAML file.
        overrides: `key.path=value` items; values are read as YAML.

    Raises:
        SpecError: With the path of each wrong field and what would be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot read the spec: {error}") from error
    return parse(text, overrides, origin=path, new=True)


def parse(text: str, overrides: list[str] | None = None, origin: str = "spec", *, new: bool = False) -> JobSpec:
    """The spec that a YAML text holds; raises as `load` does.

    Args:
        text: The YAML.
        overrides: As for `load`.
        origin: Where it is from, for messages.
        new: It is to be run: `answer.schema` is held to what the engine can hold an answer to. A spec that an output
            holds already may be of a version that did not look.
    """
    try:
        data = values(text)
    except TextError as error:
        raise SpecError(f"{origin}: {error}") from error.__cause__ or error
    if not isinstance(data, dict):
        raise SpecError(f"{origin}: a spec is a mapping that begins with `name:`, not {type(data).__name__}")
    stored = [] if new else secrets(data)
    for item in overrides or []:
        _override(data, item)
    if found := [one for one in secrets(data) if one not in stored]:
        lines = [f"  {path}: {message}" for path, message in found]
        raise SpecError("\n".join([f"{origin}: {len(found)} wrong field(s)", *lines]))
    try:
        spec = JobSpec.model_validate(data, context={NEW: new})
    except ValidationError as error:
        raise SpecError(_explain(origin, error)) from error
    return _absolute(spec)


def _override(data: dict[str, Any], item: str) -> None:
    key, separator, raw = item.partition("=")
    if not separator or not key:
        raise SpecError(f"--set {item}: write key.path=value, such as --set sampling.temperature=0")
    *path, last = key.split(".")
    try:
        value = values(raw, exact=not {"enum", "const"}.isdisjoint((*path, last)))
    except TextError as error:
        raise SpecError(f"--set {item}: the value is not YAML; put text in quotes: {error}") from (
            error.__cause__ or error
        )
    node = data
    for name in path:
        if node.get(name) is None:  # not there, or a group whose fields are all left out
            node[name] = {}
        child = node[name]
        if not isinstance(child, dict):
            raise SpecError(f"--set {item}: {name} is a value, not a group of fields")
        node = child
    node[last] = value


def _explain(origin: str, error: ValidationError) -> str:
    lines = [f"{origin}: {error.error_count()} wrong field(s)"]
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"]) or "(spec)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"no such field; {_nearest(problem['loc'])}"
        elif problem["type"] == "missing":
            message = f"is missing: {_described(problem['loc'])}"
        elif problem["loc"] and not isinstance(problem["input"], dict | list):
            message += f" (it is {problem['input']!r})"
        lines.append(f"  {path}: {message}")
    return "\n".join(lines)


def _fields(location: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The fields of the part that holds a location."""
    node: type[BaseModel] = JobSpec
    for name in location[:-1]:
        if isinstance(name, int):  # in a list of sections
            continue
        part = node.model_fields[name].annotation
        part = next(iter(get_args(part)), part)  # of a section that may be left out, or of a list of them
        assert isinstance(part, type), "only parts have fields that can be missing or too many"
        assert issubclass(part, BaseModel)
        node = part
    return node.model_fields


def _nearest(location: tuple[int | str, ...]) -> str:
    fields = _fields(location)
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f"did you mean `{close[0]}`?" if close else f"the fields here are {', '.join(fields)}"


def _described(location: tuple[int | str, ...]) -> str:
    return _fields(location)[str(location[-1])].description or ""


def _absolute(spec: JobSpec) -> JobSpec:
    """Local paths made absolute: replicas do not run in the directory of the command."""

    def fix(path: str) -> str:
        return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))

    source = spec.model.source
    if source.startswith((".", "~", "/")) or (not source.startswith(("s3://", "builtin:")) and os.path.isdir(source)):
        source = os.path.abspath(os.path.expanduser(source))
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"source": source}),
            "input": spec.input.model_copy(
                update={"path": fix(spec.input.path), "fetch_from": [fix(path) for path in spec.input.fetch_from]}
            ),
            "output": spec.output.model_copy(update={"path": fix(spec.output.path).rstrip("/") or "/"}),
        }
    )
