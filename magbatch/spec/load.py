"""YAML text to a job spec, or one error message with the path of each wrong field and what to write."""

import functools
import os
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from magbatch.counts import counted
from magbatch.errors import SpecError, TextError
from magbatch.spec.engine_args import PATH
from magbatch.spec.engines import engine_mistakes
from magbatch.spec.job import JobSpec
from magbatch.spec.mistakes import FieldPath, field_mistakes
from magbatch.spec.secrets import is_stored_in_its_output, secrets, without_value
from magbatch.spec.section import NEW, is_remote
from magbatch.spec.text import file_text, unquoted, values


def load(path: str, overrides: list[str] | None = None) -> JobSpec:
    """Read and check a spec file.

    Args:
        path: The YAML file.
        overrides: Items `key.path=value`; the value is YAML.

    Raises:
        SpecError: The file cannot be read, or fields are wrong. The message names each field and says what to write.
    """
    try:
        text = file_text(path)
    except TextError as error:
        raise SpecError(f"{path}: {error}") from error.__cause__
    return parse(text, overrides, origin=path, new=True)


def parse(text: str, overrides: list[str] | None = None, origin: str = "spec", *, new: bool = False) -> JobSpec:
    """Read and check the YAML text of a spec.

    Args:
        text: The YAML.
        overrides: Items `key.path=value`; the value is YAML.
        origin: Source of the text, for messages.
        new: Whether a user submits the spec. Then `answer.schema` must work with the engine's grammar, and the
            engine's arguments must exist. A stored spec may come from a version that did not check this.

    Raises:
        SpecError: Fields are wrong. The message names each field and says what to write.
    """
    data = _mapping(text, origin)
    given = [_Override(item) for item in overrides or []]
    stored = secrets(data) if not new or is_stored_in_its_output(origin, data) else []
    for override in given:
        override.apply(data)
    if found := [item for item in secrets(data) if item not in stored]:  # checked before any message shows a value
        raise SpecError(_listed(origin, [f"{path}: {message}" for path, message in found]))

    @functools.cache
    def all_unquoted() -> dict[FieldPath, str]:
        found = unquoted(text)
        for override in given:
            found |= {(*override.field_path, *field_path): word for field_path, word in unquoted(override.raw).items()}
        return found

    spec, invalid, lines = None, None, list[str]()
    try:
        spec = JobSpec.model_validate(data, context={NEW: new})
    except ValidationError as error:
        invalid = error
        lines += field_mistakes(error, JobSpec, lambda field_path: all_unquoted().get(field_path))
    if new or any(override.field_path[:1] == ("model",) for override in given):
        lines += _engine_mistakes(data.get("model"), all_unquoted)
    if spec is None or lines:
        raise SpecError(_listed(origin, lines)) from invalid
    return _absolute(spec)


def _mapping(text: str, origin: str) -> dict[str, Any]:
    try:
        data = values(text)
    except TextError as error:
        raise SpecError(f"{origin}: {error}") from error.__cause__ or error
    if not isinstance(data, dict):
        is_a = "empty" if data is None else "a list" if isinstance(data, list) else "one value"
        raise SpecError(f"{origin}: a spec is a mapping that begins with `name:`, and this is {is_a}")
    return data


def _listed(origin: str, lines: list[str]) -> str:
    return "\n  ".join([f"{origin}: {counted(len(lines), 'wrong field')}", *lines])


def _engine_mistakes(model: Any, all_unquoted: Callable[[], dict[FieldPath, str]]) -> list[str]:
    if not isinstance(model, dict):
        return []
    above = tuple(PATH.split("."))
    return engine_mistakes(
        model.get("engine", "vllm"),
        model.get("engine_args", {}),
        lambda field_path: all_unquoted().get((*above, *field_path)),
    )


class _Override:
    """An option `--set key.path=value`.

    Args:
        item: The option's text, `key.path=value`.

    Attributes:
        field_path: Path of the field, one name per item.
        raw: The value as written.

    Raises:
        SpecError: The text is not `key.path=value` with a YAML value.
    """

    def __init__(self, item: str) -> None:
        key, separator, self.raw = item.partition("=")
        item = self._item = without_value(item)  # for messages
        if not separator or not key:
            raise SpecError(f"--set {item}: write key.path=value, such as --set sampling.temperature=0")
        names = key.split(".")
        if not all(names):
            raise SpecError(f"--set {item}: {key} is not the path of a field: a name between its dots is empty")
        if "[" in key:
            raise self._is_a_list(key.partition("[")[0])
        self.field_path = tuple(names)
        try:
            self._value = values(self.raw, exact=not {"enum", "const"}.isdisjoint(names))
        except TextError as error:
            said = str(error).replace("not YAML: ", "the value is not YAML; put text in quotes: ", 1)
            raise SpecError(f"--set {item}: {said}") from error.__cause__ or error

    def apply(self, data: dict[str, Any]) -> None:
        """Set the field in a spec's data. Missing groups are created."""
        node, *names = data, *self.field_path
        for depth, name in enumerate(names[:-1], 1):
            if node.get(name) is None:  # missing, or written without fields
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
    """Make local paths absolute: replicas do not run in the command's directory."""

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
