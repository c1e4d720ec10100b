"""A YAML text -> a job spec, or one message with the path of each wrong field and what would be right."""

import functools
import os
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from magbatch.counts import counted
from magbatch.errors import SpecError
from magbatch.spec.engine_args import PATH, engine_mistakes
from magbatch.spec.job import JobSpec
from magbatch.spec.mistakes import Place, field_mistakes
from magbatch.spec.secrets import is_stored_in_its_output, secrets, without_value
from magbatch.spec.sections import NEW, is_remote
from magbatch.spec.text import TextError, file_text, unquoted, values


def load(path: str, overrides: list[str] | None = None) -> JobSpec:
    """Read and check a spec file.

    Args:
        path: The YAML file.
        overrides: `key.path=value` items; values are read as YAML.

    Raises:
        SpecError: With the path of each wrong field and what would be right.
    """
    try:
        text = file_text(path)
    except TextError as error:
        raise SpecError(f"{path}: {error}") from error.__cause__
    return parse(text, overrides, origin=path, new=True)


def parse(text: str, overrides: list[str] | None = None, origin: str = "spec", *, new: bool = False) -> JobSpec:
    """The spec that a YAML text holds; raises as `load` does.

    Args:
        text: The YAML.
        overrides: As for `load`.
        origin: Where it is from, for messages.
        new: It is to be run: `answer.schema` is held to what the engine can hold an answer to, and the engine's
            arguments to those that it has. A spec that an output holds already may be of a version that did not look.
    """
    try:
        data = values(text)
    except TextError as error:
        raise SpecError(f"{origin}: {error}") from error.__cause__ or error
    if not isinstance(data, dict):
        is_a = "empty" if data is None else "a list" if isinstance(data, list) else "one value"
        raise SpecError(f"{origin}: a spec is a mapping that begins with `name:`, and this is {is_a}")
    given = [_Override(item) for item in overrides or []]
    stored = secrets(data) if not new or is_stored_in_its_output(origin, data) else []
    for one in given:
        one.apply(data)
    if found := [one for one in secrets(data) if one not in stored]:  # before any message shows a value
        raise SpecError(_listed(origin, [f"{path}: {message}" for path, message in found]))

    @functools.cache
    def all_unquoted() -> dict[Place, str]:
        found = unquoted(text)
        for one in given:
            found |= {(*one.place, *place): word for place, word in unquoted(one.raw).items()}
        return found

    spec, invalid, lines = None, None, list[str]()
    try:
        spec = JobSpec.model_validate(data, context={NEW: new})
    except ValidationError as error:
        invalid = error
        lines += field_mistakes(error, JobSpec, lambda place: all_unquoted().get(place))
    if new or any(one.place[:1] == ("model",) for one in given):
        lines += _engine_mistakes(data.get("model"), all_unquoted)
    if spec is None or lines:
        raise SpecError(_listed(origin, lines)) from invalid
    return _absolute(spec)


def _listed(origin: str, lines: list[str]) -> str:
    return "\n  ".join([f"{origin}: {counted(len(lines), 'wrong field')}", *lines])


def _engine_mistakes(model: Any, all_unquoted: Callable[[], dict[Place, str]]) -> list[str]:
    if not isinstance(model, dict):
        return []
    above = tuple(PATH.split("."))
    return engine_mistakes(
        model.get("engine", "vllm"), model.get("engine_args", {}), lambda place: all_unquoted().get((*above, *place))
    )


class _Override:
    """One `--set key.path=value`.

    Args:
        item: It, as the command line has it.

    Attributes:
        place: The path of the field.
        raw: The value as it is written.

    Raises:
        SpecError: It is none.
    """

    def __init__(self, item: str) -> None:
        key, separator, self.raw = item.partition("=")
        item = self._item = without_value(item)  # for messages
        if not separator or not key:
            raise SpecError(f"--set {item}: write key.path=value, such as --set sampling.temperature=0")
        names = key.split(".")
        if not all(names):
            raise SpecError(f"--set {item}: {key} is no path of a field: a name is empty between its dots")
        if "[" in key:
            raise self._is_a_list(key.partition("[")[0])
        self.place = tuple(names)
        try:
            self._value = values(self.raw, exact=not {"enum", "const"}.isdisjoint(names))
        except TextError as error:
            said = str(error).replace("not YAML: ", "the value is not YAML; put text in quotes: ", 1)
            raise SpecError(f"--set {item}: {said}") from error.__cause__ or error

    def apply(self, data: dict[str, Any]) -> None:
        """Set the field; groups that are not there are made."""
        node, *names = data, *self.place
        for depth, name in enumerate(names[:-1], 1):
            if node.get(name) is None:  # not there, or a group whose fields are all left out
                node[name] = {}
            child, path = node[name], ".".join(names[:depth])
            if isinstance(child, list):
                raise self._is_a_list(path)
            if not isinstance(child, dict):
                raise SpecError(f"--set {self._item}: {path} is a value, not a group of fields")
            node = child
        node[names[-1]] = self._value

    def _is_a_list(self, path: str) -> SpecError:
        return SpecError(f"--set {self._item}: {path} is a list: set it as a whole, --set '{path}=[first, second]'")


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
