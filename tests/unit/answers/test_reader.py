"""Answers become typed columns, an extracted part, or a vote; a misfit is named with its place."""

from datetime import UTC, date, datetime, time
from typing import Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel

from magbatch.answers import Reader, Reading, SchemaReader, boxed
from magbatch.errors import AnswerError
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
        ({"type": "string", "format": "time"}, pa.time64("us"), '"10:20:30+02:00"', time(10, 20, 30)),
        ({"type": "string", "format": "time"}, pa.time64("us"), '"10:20:60z"', time(10, 20, 59, 999999)),
        ({"type": "string", "format": "date-time"}, pa.timestamp("us", tz="UTC"), '"2026-01-01t00:30:00.1234567+01:00"',
         datetime(2025, 12, 31, 23, 30, 0, 123456, UTC)),
        ({"type": "integer"}, WHOLE, "12345678901234567.0", 12345678901234567),
        ({"type": "number", "multipleOf": 0.01}, NUMBER, "542.67", 542.67),
        ({"type": "number", "multipleOf": 0.01}, NUMBER, "-74.290", -74.29),
        ({"type": "number", "enum": [19.99]}, NUMBER, "19.990", 19.99),
        ({"type": "number", "maximum": 0.3}, NUMBER, "3e-1", 0.3),
        ({"type": "string", "pattern": r"^\W+$"}, TEXT, '"é"', "é"),
        ({"type": "string", "pattern": r"^\p{L}+$"}, TEXT, '"é"', "é"),
        ({"type": "string", "pattern": "b"}, TEXT, '"a\\u0000\\u007f\\"b"', 'a\0\x7f"b'),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, pa.list_(pa.list_(WHOLE)),
         "[[1], []]", [[1], []]),
        # What Arrow has no one type for stays JSON text.
        ({"type": ["integer", "string"]}, TEXT, '"x"', '"x"'),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, TEXT, "4", "4"),
        ({"type": "object"}, TEXT, '{"é": 1}', '{"é": 1}'),
        ({}, TEXT, "[1]", "[1]"),
        ({"enum": [1, "a"]}, TEXT, "1", "1"),
        ({}, TEXT, "[1.10, 12345678901234567890, 1e5]", "[1.10, 12345678901234567890, 1E+5]"),
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
        ('{"number": 1.5}', r"\$\.number: 1\.5 is not of type 'integer'"),
        ('{"number": 1, "due": "2026-01-01", "number": 2}', 'not JSON: the key "number" appears twice'),
        ('{"number": 1, "other": [{"a": 1, "\\u0061": 2}]}', 'not JSON: the key "a" appears twice'),
        ('{"number": NaN}', "not JSON: NaN is not a JSON number"),
        ('{"number": -Infinity}', "not JSON: -Infinity is not a JSON number"),
        ('{"number": 1, "other": 1e999}', "not JSON: the number 1e999 is beyond the range of a double"),
        *(
            (f'{{"number": 1, "other": {text}}}', f"not JSON: the number {text} is beyond the range of a double")
            for text in (
                "0e99999999999999999999",
                "-0.0e-99999999999999999999",
                "0e325",
                "0E-999999999",
                "1e" + "9" * 30,
            )
        ),
        ('{"number": 1, "other": -1e-999}', "not JSON: the number -1e-999 is beyond"),
        (f'{{"number": 1{"0" * 5000}}}', "not JSON: a whole number of 5001 digits is too long"),
        ('{"number": 1, "other": "\\ud800"}', r"not JSON: a string contains .ud800, half of a character"),
        ('{"number": 1, "\\uDFFF": 1}', r"not JSON: a string contains .udfff"),
        ("[" * 2000, "nested too deeply"),
        ('{"number": 1, "other": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_with_its_place(answer: str | None, message: str) -> None:
    due = {"type": "string", "format": "date"}
    schema = {"type": "object", "properties": {"number": {"type": "integer"}, "due": due}, "required": ["number"]}
    with pytest.raises(AnswerError, match=message):
        SchemaReader(schema)(answer)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ {a} }", "{a}"),
        (r"\boxed{\{1, 2\}} } \{", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \boxed{b} c}", "b"),
        ("\\boxed \n {5} and boxed{6}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{" * 20_000, None),
        (r"\boxed{7}" + r"\boxed{" * 20_000, "7"),
        (r"\boxed{" * 20_000 + "1" + "}" * 20_000, "1"),
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
    assert reader(answer) == Reading({"extracted": found})
    assert reader(None) == Reading()


def votes(reader: Reader, *answers: str | None) -> dict[str, Any] | None:
    return reader.vote([reader(answer).ballot for answer in answers])


def test_samples_vote() -> None:
    boxes = Reader(AnswerSpec(extract="boxed", vote="majority"))
    assert votes(boxes, r"\boxed{7}", r"well: \boxed{ 7 }", r"\boxed{8}", "nothing", None) == {
        "answer": "7",
        "share": 0.4,
    }
    assert votes(boxes, None, None) == {"answer": None, "share": 0.0}
    plain = Reader(AnswerSpec(vote="majority"))
    assert votes(plain, "b", "a ", "a") == {"answer": "a", "share": 2 / 3}
    schema = {"type": "object", "properties": {"x": {"type": "number"}, "y": {}}}
    typed = Reader(AnswerSpec(schema=schema, vote="majority"))
    same = ('{"x":1.50,"y":2}', '{"y": 2.0, "x": 15e-1}', '{"x":1.5}')
    assert votes(typed, *same) == {"answer": '{"x":1.5,"y":2}', "share": 2 / 3}
    assert Reader(AnswerSpec()).vote([None]) is None
