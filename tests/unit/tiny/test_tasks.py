"""The generator: the same example from the same arguments, and reasoning that is true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from magbatch.tiny.tasks import KINDS, Split, Worked, example, in_words, work, work_columns, write_parquet

SPLITS: tuple[Split, ...] = ("train", "heldout")


def run_columns(lines: list[str]) -> int:
    """Reads a worked sum back, checking each step, and gives its result."""
    carry, result = 0, 0
    for place, line in enumerate(lines):
        steps, digit = line.split(";")
        first, *rest = steps.split("=")
        running, sign, term = re.fullmatch(r"(-?\d+)([+-])(\d)", first).groups()
        assert int(running) == carry
        for part in rest:
            running = int(running) + int(sign + term)
            match = re.fullmatch(r"(-?\d+)(?:([+-])(\d))?", part)
            assert int(match[1]) == running
            sign, term = match[2], match[3]
        assert sign is None
        assert int(digit) == running % 10
        carry = running // 10
        result += int(digit) * 10**place
    return result + carry * 10 ** len(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_depends_on_its_arguments_alone(kind: str):
    first = example("train", 3, 8, [kind])
    assert example("train", 3, 8, [kind]) == first
    others = [example("heldout", 3, 8, [kind]), example("train", 4, 8, [kind]), example("train", 3, 9, [kind])]
    assert all((o.question, o.image, o.reasoning) != (first.question, first.image, first.reasoning) for o in others)


def test_examples_are_the_same_in_another_process():
    code = "from magbatch.tiny.tasks import example; print([example('train', 1, i) for i in range(3)])"
    runs = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        runs.add(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment).stdout)
    assert len(runs) == 1


def summands(worked: Worked) -> tuple[str, ...]:
    return tuple(sorted(line for line in worked.reasoning.split("\n") if re.fullmatch(r"[+-]\d{4}", line)))


def test_splits_share_no_sum():
    train, heldout = ({summands(work(split, 0, i, "arithmetic")) for i in range(4000)} for split in SPLITS)
    assert not train & heldout
    assert any(len(terms) == 2 and all(term <= "+0099" for term in terms) for terms in heldout), "no short one"


def test_splits_share_no_document():
    train, heldout = ({work(split, 0, i, "fields").question for i in range(2000)} for split in SPLITS)
    assert not train & heldout


@pytest.mark.parametrize(
    ("terms", "lines"),
    [
        ([478, 96, -12], ["0+8=8+6=14-2=12;2", "1+7=8+9=17-1=16;6", "1+4=5+0=5-0=5;5", "0+0=0+0=0-0=0;0"]),
        ([5, -9, 30], ["0+5=5-9=-4+0=-4;6", "-1+0=-1-0=-1+3=2;2", "0+0=0-0=0+0=0;0", "0+0=0-0=0+0=0;0"]),
    ],
)
def test_sums_are_worked_out_column_by_column(terms: list[int], lines: list[str]):
    assert work_columns(terms) == lines
    assert run_columns(lines) == sum(terms)


def test_arithmetic_traces_are_correct():
    for index in range(500):
        worked = work("train", 11, index, "arithmetic")
        lines = worked.reasoning.split("\n")
        terms = [int(line) for line in lines if re.fullmatch(r"[+-]\d{4}", line)]
        columns = lines[len(terms) : -1]
        assert run_columns(columns) == sum(terms) == int(worked.expected) >= 0
        assert lines[-1] == f"={worked.expected}"


def test_receipt_traces_are_correct():
    asked = set()
    for index in range(150):
        worked = work("train", 11, index, "receipt")
        lines = worked.reasoning.split("\n")
        items = [re.fullmatch(r"(\d) (\w+)[ =](\d+)\.(\d\d)", line) for line in lines]
        items = [match for match in items if match]
        assert [(m[2], int(m[3] + m[4])) for m in items] == list(worked.receipt.items)
        assert [int(m[1]) for m in items] == list(range(1, len(items) + 1))
        if "JSON" in worked.question:
            asked.add("json")
            read = json.loads(worked.expected)
            assert list(read) == ["total", "items"]
            assert run_columns(lines[len(items) : -2]) == sum(c for _, c in worked.receipt.items)
            assert round(read["total"] * 100) == sum(c for _, c in worked.receipt.items)
            assert read["items"] == len(items)
            assert lines[-1] == f"count {len(items)}"
            continue
        assert re.fullmatch(rf"(total|count) {worked.expected}|price={worked.expected}", lines[-1])
        wanted = re.match(r"[a-z]+", lines[-1])[0]
        asked.add(wanted)
        if wanted == "total":
            cents = run_columns(lines[len(items) : -1])
            assert cents == sum(c for _, c in worked.receipt.items) == round(float(worked.expected) * 100)
        elif wanted == "count":
            assert worked.expected == str(len(items))
        else:
            (marked,) = [line for line in lines[:-1] if "=" in line]
            name, price = marked.split()[1].split("=")
            assert name in worked.question
            assert price == worked.expected
    assert asked == {"total", "count", "price", "json"}


def test_the_field_stands_in_the_document():
    for index in range(500):
        worked = work("train", 11, index, "fields")
        field, found = worked.reasoning.split("\n")
        assert found.removeprefix("found ") in worked.question
        assert found.endswith(worked.expected)
        assert field.split()[1] in {"number", "date", "due", "customer", "amount"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (96, "ninety-six"),
        (407, "four hundred and seven"),
        (500, "five hundred"),
        (2305, "two thousand three hundred and five"),
        (9021, "nine thousand and twenty-one"),
    ],
)
def test_numbers_in_words(number: int, words: str):
    assert in_words(number) == words


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no task is called 'poems'"):
        work("train", 0, 0, "poems")


def test_parquet_holds_what_the_generator_gives(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    write_parquet(path, ["receipt", "fields"], 6, 42)
    rows = pq.read_table(path).to_pylist()
    assert list(rows[0]) == ["id", "kind", "question", "image", "expected"]
    assert [row["kind"] for row in rows] == ["receipt", "fields"] * 3
    assert len({row["id"] for row in rows}) == 6
    assert rows[1]["image"] is None
    made = example("heldout", 42, 2, ["receipt", "fields"])
    assert (rows[2]["question"], rows[2]["image"]) == (made.question, made.image)
