"""The check that an engine can answer by a JSON Schema, made before any row is paid for.

The schema must be JSON, its references must resolve, some answer must fit, and llguidance must compile it. The engine
constrains answers with llguidance. Nothing is fetched and no model is loaded.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 100  # levels of a schema, and references in a chain that describes one value
MAX_USES = 10_000  # uses of schemas that describe one value; the check of one answer visits every use
# Formats that `magbatch.answers` checks but the grammar does not know. The engine gets the schema without them.
CHECKED_ONLY = frozenset(
    {"idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer"}
    | {"relative-json-pointer", "regex"}
)
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    *("items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties"),
    *("propertyNames", "contains", "not", "if", "then", "else", "contentSchema"),
)
_IN_PLACE = ("allOf", "anyOf", "oneOf")  # the listed schemas describe the same value
QUOTES = "put text in quotes: YAML reads yes, no, on and off as true and false, 1.0 as a number, 2026-01-01 as a date"
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_answerable(schema: dict[str, Any], *, written: bool = True) -> None:
    """Check that answers can be constrained to a schema.

    Args:
        schema: A valid JSON Schema.
        written: Whether a person wrote the schema. False: a program made it.

    Raises:
        ValueError: The schema is wrong. The message has the path and says what to write.
    """
    check_json(schema)
    _check_references(schema)
    for path, part in subschemas(schema):
        _check_values(path, part, written=written)
    _check_grammar(schema)


def engine_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Copy of a schema for the engine's grammar, without the formats in CHECKED_ONLY."""

    def without(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        part = {name: value for name, value in node.items() if name != "format" or value not in CHECKED_ONLY}
        for name in part:
            if name in _BY_NAME and isinstance(part[name], dict):
                part[name] = {key: without(value) for key, value in part[name].items()}
            elif name in _LISTED and isinstance(part[name], list):
                part[name] = [without(value) for value in part[name]]
            elif name in _SINGLE:
                part[name] = without(part[name])
        return part

    found: dict[str, Any] = without(schema)
    return found


def subschemas(node: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and content of a schema and of all schemas inside it."""
    if not isinstance(node, dict):
        return
    yield path, node
    for name in _BY_NAME:
        if isinstance(node.get(name), dict):
            for key, part in node[name].items():
                yield from subschemas(part, f"{path}.{name}.{key}")
    for name in _LISTED:
        if isinstance(node.get(name), list):
            for position, part in enumerate(node[name]):
                yield from subschemas(part, f"{path}.{name}[{position}]")
    for name in _SINGLE:
        yield from subschemas(node.get(name), f"{path}.{name}")


def check_json(node: Any, path: str = "$", depth: int = 0) -> None:
    """Raise ValueError if a value read from YAML has no form in JSON.

    Args:
        node: The value.
        path: Path of the value, for messages.
        depth: Number of enclosing values.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:80]}…: nested more than {MAX_DEPTH} deep, or within itself")
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                raise ValueError(f"{path}: the key {key!r} is not text: {QUOTES}")
            check_json(value, f"{path}.{key}", depth + 1)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            check_json(value, f"{path}[{position}]", depth + 1)
    elif isinstance(node, float) and not math.isfinite(node):
        raise ValueError(f"{path}: {node} is not a JSON number")
    elif isinstance(node, str):
        if _SURROGATE.search(node):
            raise ValueError(f"{path}: the text {node!r} is not valid Unicode")
    elif not isinstance(node, bool | int | float | None):
        raise ValueError(f"{path}: {node} is a {type(node).__name__}, which JSON does not have: {QUOTES}")


def _check_references(schema: dict[str, Any]) -> None:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    targets: dict[int, Any] = {}

    def look(node: Any, path: str, resolver: Any) -> None:
        if not isinstance(node, dict):
            return
        if "$id" in node and node is not schema:
            resolver = resolver.in_subresource(DRAFT202012.create_resource(node))
        if "$ref" in node:
            reference = node["$ref"]
            try:
                target = resolver.lookup(reference).contents
            except (Unresolvable, ValueError, LookupError, TypeError) as error:
                hint = "references are resolved inside the schema only: write #/$defs/NAME and define NAME below $defs"
                raise ValueError(f"{path}: $ref {reference!r} has no target; {hint}") from error
            if not isinstance(target, dict | bool):
                raise ValueError(f"{path}: the target of $ref {reference!r} is not a schema")
            targets[id(node)] = target
        for name, key, part in _children(node):
            look(part, f"{path}.{name}{key}", resolver)

    look(schema, "$", root)
    done: dict[int, tuple[int, int]] = {}
    for path, part in subschemas(schema):
        _check_ends(part, path, targets, [], done)


def _children(node: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name in _BY_NAME:
        if isinstance(node.get(name), dict):
            yield from ((name, f".{key}", part) for key, part in node[name].items())
    for name in _LISTED:
        if isinstance(node.get(name), list):
            yield from ((name, f"[{position}]", part) for position, part in enumerate(node[name]))
    yield from ((name, "", node[name]) for name in _SINGLE if name in node)


def _check_ends(
    node: Any, path: str, targets: dict[int, Any], above: list[int], done: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """Raise ValueError if the schemas that describe one value form a loop, a long chain, or are too many.

    Only `$ref`, `allOf`, `anyOf` and `oneOf` lead to schemas of the same value.

    Args:
        node: The schema.
        path: Path for messages.
        targets: Identity of a schema with `$ref` -> the schema to which the reference leads.
        above: Identities of the schemas that led to this one and describe the same value.
        done: Identity of a schema -> its result. Each schema is visited once, even if it is used often.

    Returns:
        Number of uses of schemas that describe the value, and length of the longest chain of them.

    Example:
        {"anyOf": [A, A]} where A is {"type": "string"}: 3 uses (the list, A, A), and a chain of 2.
    """
    if not isinstance(node, dict):
        return 1, 0
    too_long = f"{path}: more than {MAX_DEPTH} schemas in a chain describe one value; shorten the chain"
    if len(above) > MAX_DEPTH and id(node) not in above:
        raise ValueError(too_long)
    if id(node) not in done:
        if id(node) in above:
            raise ValueError(f"{path}: the schema describes itself: its references lead back to it")
        inside = [*above, id(node)]
        parts = [targets[id(node)]] if id(node) in targets else []
        parts += [part for name in _IN_PLACE for part in node.get(name, [])]
        found = [_check_ends(part, path, targets, inside, done) for part in parts]
        done[id(node)] = 1 + sum(count for count, _ in found), 1 + max((chain for _, chain in found), default=0)
    count, chain = done[id(node)]
    if len(above) + chain > MAX_DEPTH + 1:
        raise ValueError(too_long)
    if count > MAX_USES:
        raise ValueError(
            f"{path}: one value is described by more than {MAX_USES:,} schemas, each counted as often as anyOf, allOf "
            "or $ref use it; list each once"
        )
    return count, chain


def _has_type(value: Any, kind: str) -> bool:
    if kind == "integer":
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value == int(value))
        )
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return isinstance(value, kinds[kind])


def _check_values(path: str, part: dict[str, Any], *, written: bool) -> None:
    """Raise ValueError for a value of `enum` or `const` that does not have the stated type."""
    kinds = part.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    for name in ("enum", "const"):
        if name not in part:
            continue
        for value in part[name] if name == "enum" else [part[name]]:
            if kinds and not any(_has_type(value, kind) for kind in kinds):
                raise ValueError(f"{path}.{name}: {json.dumps(value)} is not of type {' or '.join(kinds)}; {QUOTES}")
            if not kinds and written and isinstance(value, bool):
                raise ValueError(
                    f"{path}.{name}: {json.dumps(value)} without a type; {QUOTES}; or, if true and false are meant, "
                    "add type: boolean"
                )


def _check_grammar(schema: dict[str, Any]) -> None:
    told = engine_schema(schema)
    wrong = _compile_error(told)
    if wrong is not None:
        raise ValueError(_explained(told, wrong))
    shared: dict[str, Any] = {name: told[name] for name in ("$defs", "definitions") if name in told}
    for name, part in told.get("properties", {}).items():
        # The library silently drops an optional property that no value fits, so each is compiled as required.
        wrong = _compile_error({"type": "object", "properties": {name: part}, "required": [name], **shared})
        if wrong is not None and "nsatisfiable" in wrong and part is not False:
            raise ValueError(f"$.properties.{name}: no value fits this schema")


def _compile_error(schema: dict[str, Any]) -> str | None:
    """Compile a schema; return the error of the grammar's library, or None."""
    import llguidance

    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    failed, said = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(said) if failed else None


def _explained(schema: dict[str, Any], wrong: str) -> str:
    """Message for a compile error: the path, the keyword, and what to do."""
    unknown = re.match(r"Unimplemented keys: (\[.*\])", wrong)
    keys = json.loads(unknown[1]) if unknown else ["oneOf"] if wrong.startswith("oneOf") else []
    for path, part in subschemas(schema):
        for key in (key for key in keys if key in part):
            advice = "write anyOf" if key == "oneOf" else "leave it out"
            return f"{path}.{key}: the engine's grammar does not support `{key}`; {advice}"
        pattern = part.get("pattern")
        patterns = [pattern] if isinstance(pattern, str) else []
        for pattern in [*patterns, *part.get("patternProperties", {})]:
            problem = _compile_error({"type": "string", "pattern": pattern})
            if problem is not None:
                key = "pattern" if pattern in patterns else "patternProperties"
                return f"{path}.{key}: {pattern!r} is not supported by the engine's grammar: {_short(problem)}"
        form = part.get("format")
        if wrong == f"Unknown format: {form}":
            return f"{path}.format: {form!r} is not a known format; leave it out"
    return f"the engine's grammar does not support the schema: {_short(wrong)}"


def _short(problem: str) -> str:
    return " ".join(problem.rpartition("error: ")[2].split())
