"""A value is checked against its schema by the rules of the engine's grammar."""

import json
from typing import Any

import pytest

from magbatch.answers import SchemaReader
from magbatch.answers.exact import read_json
from magbatch.answers.fits import Pattern, fits
from magbatch.errors import AnswerError


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        ({"type": "integer"}, "3.0", None),
        ({"type": "integer"}, "3.5", "$: 3.5 is not of type 'integer'"),
        ({"type": "integer"}, "true", "$: True is not of type 'integer'"),
        ({"type": "number", "multipleOf": 0.01}, "542.67", None),
        ({"type": "number", "multipleOf": 0.01}, "19.991", "$: 19.991 is not a multiple of 0.01"),
        ({"enum": [19.99]}, "19.990", None),
        ({"maximum": 0.3}, "3e-1", None),
        ({"maximum": 0.3}, "0.30000000000000000001", "0.30000000000000000001 is greater than the maximum of 0.3"),
        ({"type": "string", "pattern": "b"}, '"abc"', None),
        ({"type": "string", "pattern": "^b"}, '"abc"', "$: 'abc' does not match '^b'"),
        ({"pattern": "^b"}, "7", None),
        ({"patternProperties": {"^a": {"type": "integer"}}}, '{"ab": "x"}', "$.ab: 'x' is not of type 'integer'"),
        ({"properties": {"a": {}}, "additionalProperties": False}, '{"a": 1}', None),
        ({"properties": {"a": {}}, "additionalProperties": False}, '{"b": 1}', "$: the property 'b' is not in the sch"),
        ({"additionalProperties": {"type": "null"}}, '{"b": 1}', "$.b: 1 is not of type 'null'"),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, '{"ab": 1}', None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, "1", "$: 1 is not of type 'null'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_place(schema: dict[str, Any], text: str, said: str | None) -> None:
    found = fits(schema)(read_json(text))
    assert found is None if said is None else said in (found or "")


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"^\d{2}$", "12", True),
        (r"^\d{2}$", "١٢", False),
        (r"^\W+$", "é", True),
        (r"^\p{L}+$", "é", True),
        ("^a$", "a\n", False),
        ("b", 'a\0\x7f"b', True),
    ],
)
def test_a_pattern_means_what_the_grammar_takes_it_for(pattern: str, text: str, matches: bool) -> None:
    assert Pattern(pattern)(text) is matches


def test_a_pattern_that_the_grammar_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="is not supported by the engine's grammar"):
        Pattern("(?=a)")


def test_a_pattern_that_backtracks_in_python_takes_linear_time() -> None:
    pattern = {"type": "string", "pattern": r"^(\w+\s?)*\.$"}
    read = SchemaReader({"type": "object", "properties": {"x": pattern}})
    with pytest.raises(AnswerError, match="does not match"):
        read(json.dumps({"x": "a" * 50_000 + "!"}))
