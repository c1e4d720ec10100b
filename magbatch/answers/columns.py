"""The columns of an answer's JSON Schema: a column's type comes from the schema alone, never from an answer.

What Arrow has no type for (a choice of several types, an object with free names, a schema that holds itself) stays
JSON text.
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
    """How a part of an answer is stored.

    Attributes:
        kind: Arrow type.
        convert: Value of `read_json` -> value of that type.
    """

    kind: pa.DataType
    convert: Callable[[Any], Any]

    def __call__(self, value: Any) -> Any:
        """The value as it is stored; null stays null."""
        return None if value is None else self.convert(value)


_AS_JSON = Column(pa.large_string(), write_json)


def column_of(schema: Any, root: dict[str, Any], inside: tuple[str, ...] = ()) -> Column:
    """The column of a part of a schema.

    Args:
        schema: The part.
        root: The whole schema, for references.
        inside: References that were followed to get here.
    """
    if not isinstance(schema, dict):
        return _AS_JSON
    if "$ref" in schema:
        reference = schema["$ref"]
        if reference in inside or not reference.startswith("#"):
            return _AS_JSON
        return column_of(resolve(reference, root), root, (*inside, reference))
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        others = [choice for choice in choices if choice != {"type": "null"}]
        return column_of(others[0], root, inside) if len(others) == 1 else _AS_JSON
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return column_of(schema["allOf"][0], root, inside)
    kinds = schema.get("type")
    named = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
    if len(named) != 1 or named[0] is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        texts = values and all(isinstance(value, str) or value is None for value in values)
        return Column(pa.large_string(), str) if texts else _AS_JSON
    return _typed(named[0], schema, root, inside)


def _typed(kind: str, schema: dict[str, Any], root: dict[str, Any], inside: tuple[str, ...]) -> Column:
    if kind == "string":
        return Column(*_TEXT_TYPES.get(schema.get("format", ""), (pa.large_string(), str)))
    if kind in _PLAIN:
        return Column(*_PLAIN[kind])
    if kind == "array" and isinstance(schema.get("items"), dict):
        item = column_of(schema["items"], root, inside)
        return Column(pa.list_(item.kind), lambda values: [item(value) for value in values])
    if kind == "object" and schema.get("properties"):
        members = {name: column_of(part, root, inside) for name, part in schema["properties"].items()}
        struct = pa.struct([pa.field(name, member.kind) for name, member in members.items()])
        return Column(struct, lambda value: {name: part(value.get(name)) for name, part in members.items()})
    return _AS_JSON
