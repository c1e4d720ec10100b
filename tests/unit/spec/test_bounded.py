"""A new schema is checked in a process with limits; the command gets its mistake, and goes on."""

from typing import Any

import pytest

from magbatch.spec.bounded import check_new


@pytest.mark.parametrize(
    ("schema", "written", "said"),
    [
        ({"type": "object", "properties": {"a": {"type": "text"}}}, True, r"is not a JSON Schema: \$\.properties\.a"),
        ({"type": "object", "properties": {"a": {"const": True}}}, True, "add type: boolean"),
        ({"type": "object", "properties": {"a": {"const": True}}}, False, None),
        ({"minimum": float("inf")}, True, "inf is not a JSON number"),
    ],
)
def test_a_wrong_schema_is_named_with_its_place(schema: dict[str, Any], written: bool, said: str | None) -> None:
    if said is None:
        check_new(schema, written=written)
    else:
        with pytest.raises(ValueError, match=said):
            check_new(schema, written=written)


def test_a_schema_that_the_grammar_takes_minutes_for_is_refused() -> None:
    part = {"type": "array", "minItems": 10**9, "maxItems": 10**9, "items": {"type": "string"}}
    schema = {"type": "object", "properties": {"x": part}}
    with pytest.raises(ValueError, match=r"^the schema is too large for the engine's grammar: .*; make it smaller$"):
        check_new(schema, written=True, timeout_s=0.3)
