"""What an answer's JSON Schema must be before a row is paid for: JSON, of sound references, possible, and known to the
library that holds the engine to it (llguidance).

Nothing is fetched, and no model is loaded: the compilation takes milliseconds.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 100  # of a schema, and of a chain of references that describe one value
MAX_USES = 10_000  # schemas that describe one value: checking a single answer visits each, as often as it is used
# Formats that the reader of answers holds, and the grammar does not know: the engine is not told of them.
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
_IN_PLACE = ("allOf", "anyOf", "oneOf")  # what they list describes the same value
QUOTES = "put text in quotes: YAML reads yes, no, on and off as true and false, 1.0 as a number, 2026-01-01 as a date"
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_answerable(schema: dict[str, Any], *, written: bool = True) -> None:
    """Hold a schema against what an answer can be.

    Args:
        schema: A valid JSON Schema.
        written: A person wrote it as YAML or JSON; no program made it.

    Raises:
        ValueError: Where it is wrong, and what would be right.
    """
    check_json(schema)
    _check_references(schema)
    for path, part in subschemas(schema):
        _check_values(path, part, written=written)
    _check_grammar(schema)


def engine_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as the engine's grammar takes it: without the formats that only the reader of answers knows."""

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
    """A schema and all schemas within it, each with its path."""
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
    """Raise ValueError where a node read from YAML is nothing that JSON has."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:80]}…: nested more than {MAX_DEPTH} deep, or within itself")
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                raise ValueError(f"{path}: the key {key!r} is no text: {QUOTES}")
            check_json(value, f"{path}.{key}", depth + 1)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            check_json(value, f"{path}[{position}]", depth + 1)
    elif isinstance(node, float) and not math.isfinite(node):
        raise ValueError(f"{path}: {node} is no number of JSON")
    elif isinstance(node, str):
        if _SURROGATE.search(node):
            raise ValueError(f"{path}: the text {node!r} is no valid Unicode")
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
                hint = "it is looked for in the schema alone: write #/$defs/NAME and describe NAME below $defs"
                raise ValueError(f"{path}: $ref {reference!r} leads nowhere; {hint}") from error
            if not isinstance(target, dict | bool):
                raise ValueError(f"{path}: $ref {reference!r} leads to no schema")
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
    """Raise ValueError where a schema describes a value by itself, without end, or by too many schemas.

    Args:
        node: The schema.
        path: The place that a message names.
        targets: Identity of a schema with `$ref` -> what it leads to.
        above: Identities of the schemas that describe the same value around it.
        done: Identity of a schema -> what was found for it; each is looked at once, however often it is used.

    Returns:
        The schemas that describe one value, as often as each is used, and the longest chain of them.
    """
    if not isinstance(node, dict):
        return 1, 0
    too_long = f"{path}: a value is described through a chain of more than {MAX_DEPTH} schemas; shorten it"
    if len(above) > MAX_DEPTH and id(node) not in above:
        raise ValueError(too_long)
    if id(node) not in done:
        if id(node) in above:
            raise ValueError(f"{path}: describes itself without end: its references lead back to it")
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
    """Raise ValueError for a value of `enum` or `const` that the stated type never has."""
    kinds = part.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    for name in ("enum", "const"):
        if name not in part:
            continue
        for value in part[name] if name == "enum" else [part[name]]:
            if kinds and not any(_has_type(value, kind) for kind in kinds):
                raise ValueError(f"{path}.{name}: {json.dumps(value)} is no {' or '.join(kinds)}; {QUOTES}")
            if not kinds and written and isinstance(value, bool):
                raise ValueError(
                    f"{path}.{name}: {json.dumps(value)} without a type; {QUOTES}; or, if true and false are meant, "
                    "add type: boolean"
                )


def _check_grammar(schema: dict[str, Any]) -> None:
    told = engine_schema(schema)
    wrong = _compiled(told)
    if wrong is not None:
        raise ValueError(_explained(told, wrong))
    shared: dict[str, Any] = {name: told[name] for name in ("$defs", "definitions") if name in told}
    for name, part in told.get("properties", {}).items():
        # A property that no value fits is left out of the grammar without a word, unless it is required.
        wrong = _compiled({"type": "object", "properties": {name: part}, "required": [name], **shared})
        if wrong is not None and "nsatisfiable" in wrong and part is not False:
            raise ValueError(f"$.properties.{name}: no value fits it")


def _compiled(schema: dict[str, Any]) -> str | None:
    """What the grammar's library has against a schema; None if nothing."""
    import llguidance

    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    failed, said = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(said) if failed else None


def _explained(schema: dict[str, Any], wrong: str) -> str:
    """One line: where the keyword stands that the grammar does not know, and what to do."""
    unknown = re.match(r"Unimplemented keys: (\[.*\])", wrong)
    keys = json.loads(unknown[1]) if unknown else ["oneOf"] if wrong.startswith("oneOf") else []
    for path, part in subschemas(schema):
        for key in (key for key in keys if key in part):
            advice = "write anyOf" if key == "oneOf" else "leave it out"
            return f"{path}.{key}: the engine's grammar cannot hold an answer to `{key}`; {advice}"
        pattern = part.get("pattern")
        patterns = [pattern] if isinstance(pattern, str) else []
        for pattern in [*patterns, *part.get("patternProperties", {})]:
            problem = _compiled({"type": "string", "pattern": pattern})
            if problem is not None:
                key = "pattern" if pattern in patterns else "patternProperties"
                return f"{path}.{key}: {pattern!r} is not for the engine's grammar: {_short(problem)}"
        form = part.get("format")
        if wrong == f"Unknown format: {form}":
            return f"{path}.format: {form!r} is no format that can be held; leave it out"
    return f"the engine's grammar cannot hold an answer to it: {_short(wrong)}"


def _short(problem: str) -> str:
    return " ".join(problem.rpartition("error: ")[2].split())
