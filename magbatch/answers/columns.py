"""The columns of an answer's JSON Schema: a column's type depends on the schema only, never on an answer.

Schemas without an Arrow type are stored as JSON text: a choice of several types, an object with free names, a schema
that contains itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from magbatch.answers.exact import write_json
from magbatch.answers.formats import as_date, as_datetime, as_time
from magbatch.spec import resolve

_TEXT_TYPES: dict[str, tuple[pa.DataType, Callable[[str], Any]]] = {
    "date": (pa.date32(), as_date),
    "date-time": (pa.timestamp("us", tz="UTC"), as_datetime),
    "time": (pa.time64("us"), as_time),
}
_PLAIN: dict[str, tuple[pa.DataType, type]] = {
    "integer": (pa.int64(), int),
    "number": (pa.float64(), float),
    "boolean": (pa.bool_(), bool),
}


@dataclass(frozen=True, slots=True)
class Column:
    """Storage of the values of one schema node.

    Attributes:
        kind: Arrow type.
        convert: Function from a value of `read_json` to a value of `kind`.
    """

    kind: pa.DataType
    convert: Callable[[Any], Any]

    def __call__(self, value: Any) -> Any:
        """Convert a value; null stays null."""
        return None if value is None else self.convert(value)


_AS_JSON = Column(pa.large_string(), write_json)
MAX_NODES = 10_000  # schema nodes of one column; shared references can multiply the nodes without a bound


class _TooManyError(Exception):
    """A column with more than MAX_NODES schema nodes."""


def column_of(schema: Any, root: dict[str, Any]) -> Column:
    """Column of a schema node; JSON text if the column would have more than MAX_NODES nodes.

    Args:
        schema: Node of the schema, as parsed JSON.
        root: The whole schema, in which references are resolved.
    """
    try:
        return _Columns(root).of(schema, ())
    except _TooManyError:
        return _AS_JSON


class _Columns:
    """Columns of a schema's nodes. Each use of a node counts towards MAX_NODES."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root, self._nodes = root, 0

    def of(self, schema: Any, inside: tuple[str, ...]) -> Column:
        """Column of a node and of the nodes below it.

        Args:
            schema: Node of the schema, as parsed JSON.
            inside: References followed so far; a second use of one means that the schema contains itself.
        """
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _TooManyError
        if not isinstance(schema, dict):
            return _AS_JSON
        if "$ref" in schema:
            reference = schema["$ref"]
            if reference in inside or not reference.startswith("#"):
                return _AS_JSON
            return self.of(resolve(reference, self._root), (*inside, reference))
        choices = schema.get("anyOf") or schema.get("oneOf")
        if choices:
            not_null = [choice for choice in choices if choice != {"type": "null"}]
            return self.of(not_null[0], inside) if len(not_null) == 1 else _AS_JSON
        if "allOf" in schema and len(schema["allOf"]) == 1:
            return self.of(schema["allOf"][0], inside)
        kinds = schema.get("type")
        named = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
        if len(named) != 1 or named[0] is None:
            values = schema.get("enum", [schema["const"]] if "const" in schema else [])
            texts = values and all(isinstance(value, str) or value is None for value in values)
            return Column(pa.large_string(), str) if texts else _AS_JSON
        return self._typed(named[0], schema, inside)

    def _typed(self, kind: str, schema: dict[str, Any], inside: tuple[str, ...]) -> Column:
        if kind == "string":
            return Column(*_TEXT_TYPES.get(schema.get("format", ""), (pa.large_string(), str)))
        if kind in _PLAIN:
            return Column(*_PLAIN[kind])
        if kind == "array" and isinstance(schema.get("items"), dict):
            item = self.of(schema["items"], inside)
            return Column(pa.list_(item.kind), lambda values: [item(value) for value in values])
        if kind == "object" and schema.get("properties"):
            members = {name: self.of(node, inside) for name, node in schema["properties"].items()}
            struct = pa.struct([pa.field(name, member.kind) for name, member in members.items()])
            return Column(struct, lambda value: {name: member(value.get(name)) for name, member in members.items()})
        return _AS_JSON
