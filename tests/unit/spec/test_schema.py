"""A JSON Schema is loaded from a file or a pydantic model, and its references are resolved."""

from pathlib import Path
from typing import Any

import pytest

from magbatch.spec.schema import checked_schema, is_file, properties, resolve, schema_at

SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("answer.json", '{"type": "object", "properties": {"total": {"type": "number"}}}'),
        ("answer.yaml", "type: object\nproperties:\n  total: {type: number}\n"),
        ("answer.yml", "{type: object, properties: {total: {type: number}}}"),
    ],
)
def test_a_schema_is_read_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert schema_at(str(tmp_path / name)) == SCHEMA


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read as a schema file: there is no such file"), ("[1]", "holds list, not a JSON Schema")],
)
def test_a_file_without_a_schema_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    place = tmp_path / "answer.yaml"
    if text is not None:
        place.write_text(text)
    with pytest.raises(ValueError, match=f"{place} {said}"):
        schema_at(str(place))


@pytest.mark.parametrize(("place", "file"), [("a/b.json", True), ("b.yml", True), ("package.module:Model", False)])
def test_a_place_is_a_file_or_a_model(place: str, file: bool) -> None:
    assert is_file(place) is file


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "text"}, r"is not a JSON Schema: \$\.type: 'text' is not valid"),
        ({"properties": {"a": {"required": True}}}, "put text in quotes|True is not of type 'array'"),
        ({"minimum": float("nan")}, "is not a JSON number"),
    ],
)
def test_a_mapping_that_is_not_a_schema_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_schema(schema)
    assert checked_schema(SCHEMA) is SCHEMA


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("#/$defs/a", {"type": "null"}),
        ("#/$defs/x~1y~0z", 7),
        ("#/$defs/none", None),
        ("#/$defs/a/type/more", None),
    ],
)
def test_a_reference_has_its_target(reference: str, target: Any) -> None:
    assert resolve(reference, {"$defs": {"a": {"type": "null"}, "x/y~z": 7}}) == target


def test_the_properties_of_a_schema_are_found_behind_a_reference() -> None:
    assert properties(SCHEMA) == SCHEMA["properties"]
    assert properties({"$ref": "#/$defs/a", "$defs": {"a": SCHEMA}}) == SCHEMA["properties"]
    assert properties({"$ref": "#/$defs/none"}) == {}
    assert properties({"properties": 7}) == {}
