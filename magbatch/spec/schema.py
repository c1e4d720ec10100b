"""The JSON Schema of an answer: found where a spec says it is, and followed through its references."""

import functools
import importlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel


def schema_at(place: str) -> dict[str, Any]:
    """The JSON Schema that a text names: a file, or a pydantic model."""
    path = Path(place).expanduser()
    if path.suffix in (".json", ".yaml", ".yml"):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{place} is no schema file that can be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{place} holds {type(found).__name__}, not a JSON Schema")
        return found
    module, _, name = place.partition(":")
    try:
        model = functools.reduce(getattr, name.split("."), importlib.import_module(module)) if name else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: {error}") from error
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ValueError(f"{place} is neither a .json or .yaml file nor a pydantic model as package.module:Model")
    return model.model_json_schema()


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself; raises ValueError where it is none."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.json_path}: {error.message}") from error
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
