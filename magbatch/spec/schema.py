"""The JSON Schema of an answer: found where a spec says it is, and followed through its references."""

import os
from pathlib import Path
from typing import Any

from magbatch.spec.grammar import QUOTES, check_json
from magbatch.spec.text import TextError, file_text, values
from magbatch.spec.user_model import model_schema


def schema_at(place: str) -> dict[str, Any]:
    """The JSON Schema that a text names: a file, or a pydantic model."""
    if is_file(place):
        try:
            found = values(file_text(os.path.expanduser(place)))  # JSON is YAML
        except TextError as error:
            raise ValueError(f"{place} is no schema file that can be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{place} holds {type(found).__name__}, not a JSON Schema")
        return found
    return model_schema(place)


def is_file(place: str) -> bool:
    """Whether a text names a schema's file, and no pydantic model."""
    return Path(place).suffix in (".json", ".yaml", ".yml")


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself; raises ValueError if it is none."""
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    check_json(schema)
    try:
        # Patterns are not Python's: the grammar tells which it knows.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        advice = f": {QUOTES}" if isinstance(error.instance, bool) else ""
        raise ValueError(f"is no JSON Schema: {error.json_path}: {error.message}{advice}") from error
    return schema


def resolve(reference: str, root: dict[str, Any]) -> Any:
    """What a `#/…` reference of a JSON Schema stands for; None where it leads nowhere."""
    node: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node


def properties(schema: dict[str, Any]) -> dict[str, Any]:
    """The named properties of an object's schema, a reference at its top followed."""
    top = resolve(schema["$ref"], schema) if schema.get("$ref", "").startswith("#") else schema
    found = top.get("properties", {}) if isinstance(top, dict) else {}
    return found if isinstance(found, dict) else {}
