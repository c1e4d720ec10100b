"""A thinking budget and a schema on the real engine: the model thinks before the JSON begins, and the JSON is right."""

import itertools
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from magbatch_cli import magbatch, read

from magbatch.tiny.tasks import work
from magbatch.tokenizer import Tokenizer

ROWS = 24
BUDGET = 120  # tokens: receipts of few items are read and added up within it, longer ones are not
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}, "items": {"type": "integer"}},
    "required": ["total", "items"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def asked() -> dict[str, dict[str, Any]]:
    """Receipts of which the total and the number of items are wanted, by id: what is true, and how long to think."""
    drawn = (work("heldout", 88, index, "receipt") for index in itertools.count())
    receipts = itertools.islice((one for one in drawn if "JSON" in one.question), ROWS)
    return {
        f"receipt-{number}": {"question": one.question, "image": one.receipt.png(), "truth": json.loads(one.expected),
                              "reasoning": one.reasoning}
        for number, one in enumerate(receipts) if one.receipt is not None
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, asked: dict[str, dict[str, Any]]) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("typed")
    data = {name: [one[name] for one in asked.values()] for name in ("question", "image")}
    pq.write_table(pa.table({"id": list(asked), **data}), folder / "in.parquet")
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    columns = {"id": "id", "prompt": "question", "images": ["image"]}
    spec = {
        "name": "typed", "model": {"source": "builtin:tiny"}, "replicas": {"gpus": 0},
        "input": {"path": str(folder / "in.parquet"), "columns": columns},
        "reasoning": {"budget_tokens": BUDGET}, "answer": {"schema": str(folder / "schema.json")},
        "sampling": {"temperature": 0, "max_tokens": 400}, "limits": {"max_prompt_tokens": 2000},
        "output": {"path": str(folder / "out")},
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    done = magbatch("run", str(folder / "job.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", read(folder / "out")


def test_every_row_answers_by_the_schema(rows: tuple[Path, list[Any]], asked: dict[str, dict[str, Any]]) -> None:
    output, found = rows
    assert sorted(row["id"] for row in found) == sorted(asked)
    for row in found:
        assert json.loads(row["answer"]) == {"total": row["total"], "items": row["items"]}
    totals = f"select sum(total), count(items), typeof(any_value(items)) from '{output}/results/*.parquet'"
    assert duckdb.sql(totals).fetchone() == (pytest.approx(sum(row["total"] for row in found)), ROWS, "BIGINT")


def test_what_was_thought_to_the_end_is_right(
    rows: tuple[Path, list[Any]], asked: dict[str, dict[str, Any]], tokenizer: Tokenizer
) -> None:
    """The system prompt holds a closed think part, after which a grammar would bind at once: here it must not."""
    complete = [row for row in rows[1] if row["reasoning_status"] == "complete"]
    assert len(complete) > ROWS // 4
    wrong = [
        row["id"] for row in complete if asked[row["id"]]["truth"] != {"total": row["total"], "items": row["items"]}
    ]
    assert len(wrong) <= 1, wrong
    for row in complete:
        assert row["reasoning"] == asked[row["id"]]["reasoning"] or row["id"] in wrong
        assert row["reasoning_tokens"] == len(tokenizer.encode_text(row["reasoning"])) + 1 <= BUDGET


def test_a_budget_is_exact_and_the_row_answers(rows: tuple[Path, list[Any]], asked: dict[str, dict[str, Any]]) -> None:
    cut = [row for row in rows[1] if row["reasoning_status"] == "budget"]
    assert len(cut) > ROWS // 4
    assert {row["reasoning_tokens"] for row in cut} == {BUDGET}
    for row in cut:
        assert asked[row["id"]]["reasoning"].startswith(row["reasoning"][:60])
        assert row["total"] is not None
    assert {row["reasoning_status"] for row in rows[1]} == {"complete", "budget"}
