"""The engine's grammar and the reader of answers accept the same answers."""

import json
import random
from typing import Any

import pytest
from support.grammar_walk import Grammar

from magbatch.answers import SchemaReader
from magbatch.errors import AnswerError
from magbatch.spec.grammar import CHECKED_ONLY, check_answerable

TEXT: dict[str, Any] = {"type": "string"}
KINDS: dict[str, dict[str, Any]] = {
    "text": TEXT,
    "short text": {"type": "string", "minLength": 2, "maxLength": 5},
    "code": {"type": "string", "pattern": r"^[A-Z]{3}-\d{4}$"},
    "words": {"type": "string", "pattern": r"^(\w+\s?)*\.$"},
    "no words": {"type": "string", "pattern": r"^\W{1,4}$"},
    "no blanks": {"type": "string", "pattern": r"^\S{1,9}$"},
    "any case": {"type": "string", "pattern": r"(?i)^(straße|k)+$"},
    "letters": {"type": "string", "pattern": r"^\p{L}{1,9}$"},
    "anywhere": {"type": "string", "pattern": "[a-y]7?[^a-y]"},
    "not a": {"type": "string", "pattern": "^[^a]{1,5}$"},
    "one of two ends": {"type": "string", "pattern": "^a|b$"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "duration": {"type": "string", "format": "duration"},
    "email": {"type": "string", "format": "email"},
    "hostname": {"type": "string", "format": "hostname"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "uri": {"type": "string", "format": "uri"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "range": {"type": "integer", "minimum": -3, "exclusiveMaximum": 12345},
    "number": {"type": "number"},
    "decimal range": {"type": "number", "minimum": 0.1, "maximum": 0.3},
    "open range": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "cents": {"type": "number", "multipleOf": 0.01},
    "quarters": {"type": "number", "multipleOf": 0.25, "minimum": 0},
    "sevens": {"type": "integer", "multipleOf": 7},
    "enum": {"enum": ["a", "é ", 1, 19.99, None, [1.5]]},
    "const": {"const": 0.1},
    "list": {"type": "array", "items": {"type": "number", "multipleOf": 0.01}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, TEXT], "items": False},
    "object": {"type": "object", "properties": {"a": TEXT, "b": {"type": "integer"}}, "required": ["a"]},
    "closed object": {"type": "object", "properties": {"a": TEXT}, "additionalProperties": False},
    "free names": {"type": "object", "additionalProperties": {"type": "integer"}},
    "named by a pattern": {
        "type": "object", "patternProperties": {r"^\d+$": {"type": "boolean"}}, "additionalProperties": False
    },
    "few names": {"type": "object", "minProperties": 1, "maxProperties": 2, "additionalProperties": {"type": "null"}},
    "choice": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}, {"type": "integer"}]},
    "both": {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]},
    "several types": {"type": ["integer", "string", "null"]},
    "tree": {"$ref": "#/$defs/tree"},
}  # fmt: skip
DEFS = {"tree": {"type": "object", "properties": {"of": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}}}}
# What the grammar lets through and no column holds, or no calendar has: it is refused, with its reason.
BEYOND = (
    *("beyond the range of a double", "not in range: -9223372036854775808", "appears twice", "is too long"),
    *("Python int too large", "nested too deeply", "-02-29", "'0000-"),
)
WITH_SUCH = {"integer", "number", "sevens", "several types", "choice", "free names", "few names", "object", "tree"}
WITH_SUCH |= {"date", "date-time"}


def schema_of(kind: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": {"x": kind}, "required": ["x"], "additionalProperties": False, "$defs": DEFS
    }  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_answers_by_the_grammar_are_accepted(name: str) -> None:
    schema = schema_of(KINDS[name])
    check_answerable(schema)
    grammar, read, chance = Grammar(schema), SchemaReader(schema), random.Random(name)
    drawn = [text for _ in range(40) if (text := grammar.draw(chance)) is not None]
    assert drawn
    refused = {}
    for text in drawn:
        try:
            read(text)
        except AnswerError as error:
            refused[text] = str(error)
    assert {text: why for text, why in refused.items() if not any(known in why for known in BEYOND)} == {}
    assert not refused or name in WITH_SUCH


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("text", 'a"\\\n\x00\x7f é\u2028😀', True),
        ("short text", "😀é", True),
        ("short text", "😀", False),
        ("code", "ABC-1234", True),
        ("code", "ABC-١٢٣٤", False),
        ("words", "two words.", True),
        ("words", "two words!", False),
        ("no words", "é!", True),
        ("letters", "é", True),
        ("anywhere", "\nab7.cd", True),
        ("date", "2024-02-29", True),
        ("date", "2023-02-30", False),
        ("time", "03:30:30.08z", True),
        ("time", "12:00:00", False),
        ("date-time", "2026-03-01t12:00:60+23:59", True),
        ("date-time", "2026-03-01 12:00:00Z", False),
        ("uuid", "2eb8aa08-aa98-11ea-b4aa-73b441d16380", True),
        ("ipv4", "1.2.3.256", False),
        ("range", 12344, True),
        ("range", 12345, False),
        ("decimal range", 0.3, True),
        ("open range", 1.5, False),
        ("cents", 19.99, True),
        ("cents", 19.991, False),
        ("sevens", 49, True),
        ("sevens", 50, False),
        ("enum", 19.99, True),
        ("enum", True, False),
        ("list", [542.67, 74.29], True),
        ("list", [], False),
        ("tuple", [True, "a"], True),
        ("tuple", [True, "a", 1], False),
        ("named by a pattern", {"12": True}, True),
        ("named by a pattern", {"a": True}, False),
        ("choice", "2026-13-01", False),
        ("tree", {"of": {"of": None}}, True),
    ],
)  # fmt: skip
def test_grammar_and_reader_accept_and_refuse_the_same(name: str, value: Any, fits: bool) -> None:
    schema, text = schema_of(KINDS[name]), json.dumps({"x": value}, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("\x7f", "\\u007f")
    assert Grammar(schema).accepts(text) is fits
    try:
        SchemaReader(schema)(text)
    except AnswerError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("name", sorted(CHECKED_ONLY))
def test_formats_unknown_to_the_grammar_are_checked_by_the_reader(name: str) -> None:
    schema = schema_of({"type": "string", "format": name})
    wrong = json.dumps({"x": "a{ (%"}, separators=(",", ":"))
    assert Grammar(schema).accepts(wrong)
    with pytest.raises(AnswerError, match=f"is not a '{name}'"):
        SchemaReader(schema)(wrong)
