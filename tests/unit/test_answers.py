"""Answers become typed columns, an extracted part, or a vote; what does not fit says where."""

import json
from datetime import UTC, date, datetime
from typing import Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel

from magbatch.answers import AnswerError, Reader, SchemaReader, boxed
from magbatch.spec import AnswerSpec


class Line(BaseModel):
    name: str
    price: float | None = None


class Invoice(BaseModel):
    """A schema as pydantic writes it: with references, choices with null, nested lists."""

    number: int
    due: date | None
    paid: bool = False
    currency: Literal["EUR", "USD"] = "EUR"
    lines: list[Line]
    seller: Line
    stamped: datetime | None = None


TEXT, NUMBER, WHOLE = pa.large_string(), pa.float64(), pa.int64()
LINE = pa.struct([("name", TEXT), ("price", NUMBER)])


def test_a_pydantic_models_schema_gives_typed_columns() -> None:
    reader = SchemaReader(Invoice.model_json_schema())
    assert reader.fields == pa.schema(
        [
            ("number", WHOLE), ("due", pa.date32()), ("paid", pa.bool_()), ("currency", TEXT),
            ("lines", pa.list_(LINE)), ("seller", LINE), ("stamped", pa.timestamp("us", tz="UTC")),
        ]
    )  # fmt: skip
    values = reader(
        '{"number": 7, "due": "2026-03-01", "currency": "USD", "lines": [{"name": "tea", "price": 3}, {"name": "x"}],'
        ' "seller": {"name": "shop", "price": null}, "stamped": "2026-03-01T12:00:00Z"}'
    )
    assert values == {
        "number": 7, "due": date(2026, 3, 1), "paid": None, "currency": "USD",
        "lines": [{"name": "tea", "price": 3.0}, {"name": "x", "price": None}],
        "seller": {"name": "shop", "price": None}, "stamped": datetime(2026, 3, 1, 12, tzinfo=UTC),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "kind", "text", "value"),
    [
        ({"type": "integer"}, WHOLE, "3", 3),
        ({"type": "integer"}, WHOLE, "3.0", 3),
        ({"type": "number"}, NUMBER, "3", 3.0),
        ({"type": ["string", "null"]}, TEXT, "null", None),
        ({"enum": ["a", "b"]}, TEXT, '"b"', "b"),
        ({"enum": ["a", None]}, TEXT, "null", None),
        ({"const": "x"}, TEXT, '"x"', "x"),
        ({"type": "string", "format": "time"}, pa.time64("us"), '"10:20:30"', datetime(1, 1, 1, 10, 20, 30).time()),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, pa.list_(pa.list_(WHOLE)),
         "[[1], []]", [[1], []]),
        # What Arrow has no one type for stays JSON text.
        ({"type": ["integer", "string"]}, TEXT, '"x"', '"x"'),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, TEXT, "4", "4"),
        ({"type": "object"}, TEXT, '{"é": 1}', '{"é": 1}'),
        ({}, TEXT, "[1]", "[1]"),
        ({"enum": [1, "a"]}, TEXT, "1", "1"),
        ({"$ref": "#/$defs/tree"}, pa.struct([("of", TEXT)]), '{"of": {"of": null}}', {"of": '{"of": null}'}),
    ],
)  # fmt: skip
def test_each_kind_of_schema_has_its_column(schema: dict[str, Any], kind: pa.DataType, text: str, value: Any) -> None:
    tree = {"type": "object", "properties": {"of": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}}}
    reader = SchemaReader({"type": "object", "properties": {"x": schema}, "$defs": {"tree": tree}})
    assert reader.fields.field("x").type == kind
    assert reader(f'{{"x": {text}}}') == {"x": value}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "not JSON"),
        ("It is 7.", "not JSON"),
        ("[]", r"\$: \[\] is not of type 'object'"),
        ("{}", r"\$: 'number' is a required property"),
        ('{"number": "7"}', r"\$\.number: '7' is not of type 'integer'"),
        ('{"number": 1, "due": "yesterday"}', r"\$\.due: 'yesterday' is not a 'date'"),
        ('{"number": 99999999999999999999}', r"\$\.number: "),
    ],
)
def test_what_does_not_fit_says_where(answer: str | None, message: str) -> None:
    due = {"type": "string", "format": "date"}
    schema = {"type": "object", "properties": {"number": {"type": "integer"}, "due": due}, "required": ["number"]}
    with pytest.raises(AnswerError, match=message):
        SchemaReader(schema)(answer)


@pytest.mark.parametrize(
    ("name", "fits", "not_fitting"),
    [
        ("iri", "https://münchen.example/straße?q=ß#ä", "https://a b"),
        ("iri", "urn:x", "no scheme"),
        ("iri-reference", "/straße", "a b"),
        ("uri", "https://example.org/a", "https://münchen.example"),
        ("uri-reference", "/a", "/straße"),
        ("uri-template", "/a/{b}", "/a/{b"),
        ("email", "a@b", "a"),
        ("idn-email", "ä@b", "ä"),
        ("hostname", "a.example", "-a"),
        ("idn-hostname", "münchen.example", "a..b"),
        ("ipv4", "1.2.3.4", "1.2.3.4.5"),
        ("ipv6", "::1", ":::1"),
        ("date", "2026-03-01", "2026-3-1"),
        ("date-time", "2026-03-01T12:00:00Z", "2026-03-01"),
        ("time", "12:00:00", "noon"),
        ("duration", "P1D", "1 day"),
        ("json-pointer", "/a/0", "a"),
        ("relative-json-pointer", "1/a", "/a"),
        ("regex", "a+", "a("),
        ("uuid", "2eb8aa08-aa98-11ea-b4aa-73b441d16380", "2eb8"),
    ],
)
def test_every_format_of_json_schema_is_held(name: str, fits: str, not_fitting: str) -> None:
    read = SchemaReader({"type": "object", "properties": {"value": {"type": ["string", "null"], "format": name}}})
    assert read(json.dumps({"value": fits}))["value"] is not None
    assert read('{"value": null}') == {"value": None}
    with pytest.raises(AnswerError, match=f"is not a '{name}'"):
        read(json.dumps({"value": not_fitting}))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ {a} }", "{a}"),
        (r"\boxed{never closed", None),
        (r"\boxed{7} then \boxed{never closed", "7"),
        ("42", None),
    ],
)
def test_the_last_box_counts(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("extract", "answer", "found"),
    [
        ("whole", "it is 7", "it is 7"),
        ("boxed", r"\boxed{7}", "7"),
        (r"(?i)total:\s*(?P<answer>[\d.]+)", "Total: 1.50, no: TOTAL: 2.50", "2.50"),
        (r"(?P<answer>\d+)", "none", None),
    ],
)
def test_a_part_of_the_answer_is_extracted(extract: str, answer: str, found: str | None) -> None:
    reader = Reader(AnswerSpec(extract=extract))
    assert reader.fields == pa.schema([("extracted", TEXT)])
    assert reader(answer) == {"extracted": found}
    assert reader(None) == {}


def test_samples_vote() -> None:
    reader = Reader(AnswerSpec(extract="boxed", vote="majority"))
    answers = [r"\boxed{7}", r"well: \boxed{ 7 }", r"\boxed{8}", "nothing", None]
    assert reader.vote([(answer, reader(answer)) for answer in answers]) == {"answer": "7", "share": 0.4}
    assert reader.vote([(None, {}), (None, {})]) == {"answer": None, "share": 0.0}
    plain = Reader(AnswerSpec(vote="majority"))
    assert plain.vote([("b", {}), ("a ", {}), ("a", {})]) == {"answer": "a", "share": 2 / 3}
    schema = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {}}}
    typed = Reader(AnswerSpec(schema=schema, vote="majority"))
    pairs = [(text, typed(text)) for text in ('{"x":1,"y":2}', '{"y": 2, "x": 1}', '{"x":1}')]
    assert typed.vote(pairs) == {"answer": '{"x":1,"y":2}', "share": 2 / 3}
    assert Reader(AnswerSpec()).vote([("a", {})]) is None
