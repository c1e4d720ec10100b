"""The reference of the spec: every field once, and the block in jobs/README.md up to date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from support.prose import MAX_WORDS, sentences, words

from magbatch.spec import JobSpec
from magbatch.spec.reference import BEGIN, END, reference, replaced

README = Path(__file__).parents[3] / "jobs" / "README.md"


def leaves(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Path and definition of every field."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{above}{name}.")


FIELDS = dict(leaves(JobSpec))


def row(field: str, section: str = "") -> list[str]:
    """The cells of a field's row, in the table of its section."""
    heading = f"### `{section}`\n" if section else "### Fields of a job\n"
    table = reference().partition(heading)[2].partition("###")[0]
    (line,) = (line for line in table.splitlines() if line.startswith((f"| `{field}` |", f"| [`{field}`](")))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_block_in_the_readme_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert replaced(text) == text, "run: python -m magbatch.spec.reference jobs/README.md"


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_is_described_in_short_sentences(path: str) -> None:
    above, _, name = path.rpartition(".")
    description = FIELDS[path].description or ""
    assert row(name, above)[3] == description
    assert description.endswith(".")
    assert [said for said in sentences(description) if words(said) > MAX_WORDS] == []


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("name", "text", "required"),
        ("input", "section", "required"),
        ("deadline", "date and time or null", "`null`"),
        ("schedule", "section or null", "`null`"),
        ("input.columns", "section", ""),
        ("input.carry", "list of texts", "`[]`"),
        ("input.fetch_from", "list of texts", "`[]`"),
        ("input.shard_rows", "whole number, 1 to 100,000; or null", "`null`"),
        ("input.columns.images", "list of texts", "`[]`"),
        ("model.engine_args", "mapping", "`{}`"),
        ("reasoning.effort", "`none`, `high` or null", "`null`"),
        ("answer.schema", "mapping, text or null", "`null`"),
        ("sampling.top_p", "number, above 0, up to 1", "`0.95`"),
        ("sampling.ignore_eos", "true or false", "`false`"),
        ("replicas.prefer", "list of sections", "`[]`"),
        ("replicas.prefer.market", "`spot`, `on-demand` or null", "`null`"),
        ("limits.max_failed_rows", "whole number, text or null", "`null`"),
    ],
)
def test_types_and_defaults_are_plain_words(path: str, kind: str, default: str) -> None:
    above, _, name = path.rpartition(".")
    assert row(name, above)[1:3] == [kind, default]


def test_text_outside_the_marks_stays() -> None:
    found = replaced(f"before\n{BEGIN}\nstale block\n{END}\nafter\n")
    assert found.startswith("before\n")
    assert found.endswith(f"{END}\nafter\n")
    assert reference() in found
    assert "stale" not in found


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}\n"])
def test_missing_marks_are_an_error(text: Any) -> None:
    with pytest.raises(ValueError, match="marks"):
        replaced(text)
