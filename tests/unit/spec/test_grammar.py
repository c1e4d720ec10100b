"""A schema that no answer fits, or that the engine does not support, is refused before a row is paid for."""

import http.server
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llguidance
import pyarrow as pa
import pytest
import yaml
from support.answer_models import Row

from magbatch.answers.columns import column_of
from magbatch.errors import SpecError
from magbatch.spec import AnswerSpec, load, parse
from magbatch.spec.grammar import CHECKED_ONLY, check_answerable, check_json, engine_schema
from magbatch.spec.schema import checked_schema

SPEC = """
name: t
model: {source: "builtin:tiny", engine: fake}
input: {path: /in, columns: {prompt: q}}
output: {path: /o}
answer:
  schema: SCHEMA
"""


@pytest.fixture(autouse=True)
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks in this process, which are faster; test_bounded.py tests the process."""

    def check(schema: dict[str, Any], *, written: bool) -> None:
        check_json(schema)
        check_answerable(checked_schema(schema), written=written)

    monkeypatch.setattr("magbatch.spec.sections_model.check_new", check)


def load_schema(folder: Path, schema: str) -> Any:
    (folder / "spec.yaml").write_text(SPEC.replace("SCHEMA", schema))
    return load(str(folder / "spec.yaml")).answer.schema


def of(part: str) -> str:
    return f"{{type: object, properties: {{x: {part}}}}}"


QUOTES = "put text in quotes"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (of("{type: string, enum: [true, unknown]}"), rf"properties\.x\.enum: true is not of type string; {QUOTES}"),
        (of("{enum: [true, false]}"), rf"x\.enum: true without a type; {QUOTES}.*add type: boolean"),
        (of("{enum: [true, text]}"), r"x\.enum: true without a type"),
        (of("{const: false}"), r"x\.const: false without a type"),
        (of("{type: array, items: {type: string, enum: [false, SE]}}"), r"x\.items\.enum: false is not of type string"),
        (of("{anyOf: [{type: string, const: 1.1}, {type: 'null'}]}"), r"x\.anyOf\[0\]\.const: 1\.1 is not of type s"),
        (of("{type: [string, integer], enum: [1, 1.5]}"), r"x\.enum: 1\.5 is not of type string or integer"),
        (of("{type: string, enum: [a, null]}"), r"x\.enum: null is not of type string"),
        (of("{type: string, default: 2026-01-01}"), rf"x\.default: 2026-01-01 is a date, which JSON .*: {QUOTES}"),
        (of("{type: integer, enum: [1230, '1']}"), r'x\.enum: "1" is not of type integer'),
        ("{type: object, properties: {a: {}}, required: [yes]}", rf"required\[0\]: True is not of .*: {QUOTES}"),
        (of("{type: string, enum: [\"\\ud800\"]}"), "is not valid Unicode"),
        (of("{$ref: '#/definitions/A'}"), r"\$\.properties\.x: \$ref '#/definitions/A' has no target"),
        (of("{$ref: '#nowhere'}"), r"\$ref '#nowhere' has no target"),
        (of("{$ref: other.json}"), r"\$ref 'other\.json' has no target; references are resolved inside the schema"),
        ("{type: object, properties: {a: {}}, $defs: {u: {$ref: '#/no'}}}", r"\$\.\$defs\.u: \$ref '#/no' has"),
        ("{type: object, properties: {a: {$ref: '#/type'}}}", "is not a schema"),
        ("{type: object, properties: {a: {$ref: '#/$defs/b'}}, $defs: {b: {anyOf: [{$ref: '#/$defs/b'}]}}}",
         r"\$\.properties\.a: the schema describes itself"),
        (of("{type: array, uniqueItems: true}"), r"x\.uniqueItems: the engine's grammar does not support"),
        (of("{type: object, propertyNames: {maxLength: 2}}"), r"x\.propertyNames: "),
        (of("{type: array, items: {not: {type: string}}}"), r"x\.items\.not: "),
        (of("{if: {type: string}, then: {maxLength: 2}}"), r"x\.if: "),
        (of("{type: array, contains: {type: string}}"), r"x\.contains: "),
        (of("{type: object, dependentRequired: {a: [b]}}"), r"x\.dependentRequired: "),
        (of("{oneOf: [{type: number}, {type: integer}]}"), r"x\.oneOf: .*write anyOf"),
        (of("{type: string, pattern: '^(?!a)b'}"), r"x\.pattern: '\^\(\?!a\)b' is not .*: look-around"),
        (of(r"{type: string, pattern: '(a)\1'}"), r"x\.pattern: .*backreferences are not supported"),
        (of("{type: object, patternProperties: {'(?=a)': {}}}"), r"x\.patternProperties: '\(\?=a\)'"),
        (of("{type: string, pattern: '('}"), r"x\.pattern: '\(' is not supported by .* grammar: unclosed group"),
        (of("{type: string, format: colour}"), r"x\.format: 'colour' is not a known format"),
        (of("{type: integer, minimum: 5, maximum: 3}"), r"\$\.properties\.x: no value fits this schema"),
        (of("{type: number, multipleOf: 1.0e-20}"), "has too many digits"),
        ("no.such.module:Model", "there is no module no; put the folder that holds it on PYTHONPATH"),
        ("nowhere.json", "cannot be read as a schema file"),
        ("magbatch.spec.grammar:MAX_DEPTH", "neither a .json or .yaml file nor a pydantic model"),
    ],
)  # fmt: skip
def test_an_unsupported_schema_is_refused_with_its_place(tmp_path: Path, schema: str, said: str) -> None:
    with pytest.raises(SpecError, match=rf"answer\.schema: .*{said}"):
        load_schema(tmp_path, schema)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("yes", "true or false"), ("NO", "true or false"), ("off", "true or false"), ("True", "true or false")),
        *((text, "the value as JSON writes it") for text in ("12:30", "22:15", "0123", "1.10", "1_000", "0x1F", "+1")),
        *((text, "the value as JSON writes it") for text in ("2026-11-30", "2026-11-30T10:00:00Z", "~", "NULL", ".5")),
    ],
)
def test_a_value_that_yaml_misreads_is_refused_with_its_line(tmp_path: Path, written: str, value: str) -> None:
    for schema in (of(f"{{enum: [maybe, {written}]}}"), of(f"{{type: array, items: {{const: {written}}}}}")):
        (tmp_path / "schema.yaml").write_text(schema)
        said = re.escape(f'{written} is not text in YAML; write "{written}" for the text, or {value}')
        for place, line in ((schema, 7), (str(tmp_path / "schema.yaml"), 1)):
            with pytest.raises(SpecError, match=f"line {line}: {said}"):
                load_schema(tmp_path, place)
    with pytest.raises(SpecError, match=f"--set answer.schema.properties.x.enum=.*: {said}"):
        parse(SPEC.replace("SCHEMA", of("{}")), [f"answer.schema.properties.x.enum=[{written}]"])


def shared(levels: int, part: Callable[[str], dict[str, Any]]) -> str:
    """A schema in which each level uses the next one as `part` says."""
    parts: dict[str, Any] = {f"d{level}": part(f"#/$defs/d{level + 1}") for level in range(levels)}
    top = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}}
    return json.dumps(top | {"$defs": parts | {f"d{levels}": {"type": "string"}}})


@pytest.mark.parametrize("keyword", ["anyOf", "allOf"])
def test_shared_references_do_not_multiply(tmp_path: Path, keyword: str) -> None:
    with pytest.raises(SpecError, match=r"\$\.properties\.x: one value is described by more than 10,000 schemas"):
        load_schema(tmp_path, shared(24, lambda below: {keyword: [{"$ref": below}, {"$ref": below}]}))
    schema = shared(60, lambda below: {"type": "object", "properties": {"a": {"$ref": below}, "b": {"$ref": below}}})
    found = load_schema(tmp_path, schema)
    assert found == json.loads(schema)
    assert column_of(found["properties"]["x"], found).kind == pa.large_string(), "JSON text, not 2^60 columns"


def test_a_chain_of_references_is_counted_from_either_end(tmp_path: Path) -> None:
    assert load_schema(tmp_path, shared(40, lambda below: {"$ref": below}))
    with pytest.raises(SpecError, match="more than 100 schemas in a chain"):
        load_schema(tmp_path, shared(150, lambda below: {"$ref": below}))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{type: object, properties: {on: {type: boolean}}}", "the key on is not text"),
        ("{type: object, properties: {a: {properties: {2026: {}}}}}", "the key 2026 is not text"),
        (of("{type: number, minimum: .inf}"), r"\.inf is not a number"),
        ("&a {type: object, properties: {a: *a}}", "an anchor that is used inside itself"),
    ],
)
def test_values_that_json_does_not_have_are_refused_in_specs_and_files(tmp_path: Path, schema: str, said: str) -> None:
    (tmp_path / "schema.yaml").write_text(schema)
    for place in (schema, str(tmp_path / "schema.yaml")):
        with pytest.raises(SpecError, match=said):
            load_schema(tmp_path, place)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"properties": {True: {}}}, r"\$\.properties: the key True is not text: put text in quotes"),
        ({"properties": {"x": {"minimum": float("inf")}}}, r"x\.minimum: inf is not a JSON number"),
    ],
)
def test_a_schema_from_a_program_must_be_json_too(node: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AnswerSpec(schema=node)


@pytest.mark.parametrize(
    "schema",
    [
        of('{type: string, enum: ["yes", "no"]}'),
        of('{enum: [08:30x, "12:30", y, 1, 1.5, -2.0, null, 1.0e-7]}'),
        "{type: object, properties: {enum: {type: number, minimum: 1.10}, const: {type: number, maximum: 0.50}}}",
        of("{type: boolean, const: true}"),
        of("{type: integer, enum: [1.0, 2]}"),
        of('{type: [string, "null"], enum: [a, null]}'),
        of("{$ref: '#'}"),
        of("{type: integer, format: int64}"),
        of(r"{type: string, pattern: '^\p{L}+$'}"),
        "{type: object, properties: {enum: {type: string}, const: {type: boolean}, format: {}}}",
        "{type: object, properties: {a: {$ref: '#t'}}, $defs: {t: {$anchor: t, type: array, items: {$ref: '#t'}}}}",
    ],
)
def test_a_right_schema_is_accepted(tmp_path: Path, schema: str) -> None:
    assert load_schema(tmp_path, schema) == yaml.safe_load(schema)


@pytest.mark.parametrize("name", sorted(CHECKED_ONLY))
def test_formats_of_the_reader_are_accepted_and_left_out_for_the_engine(tmp_path: Path, name: str) -> None:
    found = load_schema(tmp_path, of(f"{{type: string, format: {name}}}"))
    assert engine_schema(found) == {"type": "object", "properties": {"x": {"type": "string"}}}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(found)
    assert "Unknown format" in llguidance.LLMatcher.validate_grammar(grammar), "the engine knows it now: tell it"


def test_the_schema_of_a_pydantic_model_is_taken_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("raise SystemExit(0)")
    (tmp_path / "worse_models.py").write_text("class Broken(")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_schema(tmp_path, "support.answer_models:Row") == Row.model_json_schema()
    with pytest.raises(SpecError, match="the import of broken_models fails: SystemExit: 0"):
        load_schema(tmp_path, "broken_models:Row")
    with pytest.raises(SpecError, match="the import of worse_models fails: SyntaxError"):
        load_schema(tmp_path, "worse_models:Row")
    with pytest.raises(SpecError, match=r"support\.answer_models:NotJson has no JSON Schema"):
        load_schema(tmp_path, "support.answer_models:NotJson")


def test_nothing_is_fetched(tmp_path: Path) -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "string"}')

        def log_message(self, *_: Any) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/schema.json"
        with pytest.raises(SpecError, match="has no target"):
            load_schema(tmp_path, of(f"{{$ref: '{place}'}}"))
        server.shutdown()
    assert asked == []


def test_a_stored_spec_is_read_with_any_schema(tmp_path: Path) -> None:
    text = SPEC.replace("SCHEMA", of("{type: array, uniqueItems: true}"))
    assert parse(text).answer.schema == yaml.safe_load(of("{type: array, uniqueItems: true}"))


def test_a_deep_or_damaged_schema_file_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text('{"items": ' * 3000 + "{}" + "}" * 3000)
    with pytest.raises(SpecError, match=r"deep\.json cannot be read as a schema file"):
        load_schema(tmp_path, str(deep))
    deep.write_text(json.dumps({"type": "object", "properties": {"x": {"type": "string", "enum": [True]}}}))
    with pytest.raises(SpecError, match="true is not of type string"):
        load_schema(tmp_path, str(deep))
