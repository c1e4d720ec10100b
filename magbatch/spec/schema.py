"""The JSON Schema of an answer: loaded from the file or model that a spec names, with its references resolved."""

import os
from pathlib import Path
from typing import Any

from magbatch.errors import TextError
from magbatch.spec.grammar import QUOTES, check_json
from magbatch.spec.text import file_text, values
from magbatch.spec.user_model import model_schema


def schema_at(source: str) -> dict[str, Any]:
    """Load a JSON Schema.

    Args:
        source: A .json or .yaml file, or `package.module:PydanticModel`.

    Raises:
        ValueError: The file or model has no JSON Schema.
    """
    if is_file(source):
        try:
            found = values(file_text(os.path.expanduser(source)))  # JSON is YAML
        except TextError as error:
            raise ValueError(f"{source} cannot be read as a schema file: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{source} holds {type(found).__name__}, not a JSON Schema")
        return found
    return model_schema(source)


def is_file(source: str) -> bool:
    """Whether a text names a schema file, not a pydantic model."""
    return Path(source).suffix in (".json", ".yaml", ".yml")


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema unchanged.

    Raises:
        ValueError: The mapping is not a JSON Schema of draft 2020-12.
    """
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    check_json(schema)
    try:
        # No format checker: patterns follow the engine's grammar, not Python's `re`.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        advice = f": {QUOTES}" if isinstance(error.instance, bool) else ""
        raise ValueError(f"is not a JSON Schema: {error.json_path}: {error.message}{advice}") from error
    return schema


def resolve(reference: str, root: dict[str, Any]) -> Any:
    """Target of a `#/…` reference in a JSON Schema; None if there is none."""
    node: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node


def properties(schema: dict[str, Any]) -> dict[str, Any]:
    """Properties of an object's schema by name. A reference at the top is followed."""
    top = resolve(schema["$ref"], schema) if schema.get("$ref", "").startswith("#") else schema
    found = top.get("properties", {}) if isinstance(top, dict) else {}
    return found if isinstance(found, dict) else {}
