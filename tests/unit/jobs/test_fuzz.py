"""Hostile rows among good ones, through every step except Ray: each row ends once, and good rows are answered.

A row's way is the real one: Parquet, plan, read, render, prompt, a scripted engine, parse, check, commit, finalise.
The short series is the same on every machine; `-m fire` draws new rows for a quarter of an hour.
"""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.document_files import text_pdf
from support.odd_columns import SHAPES, filled, odd_values
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, InputError
from magbatch.ledger.verify import verify

Strategy = st.SearchStrategy[Any]
GOOD = "What is a good row?"
SHORT, LONG = 5, 400
NO_CHECKS = list(HealthCheck)


def series(short: int = SHORT, **drawn: Strategy) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same property twice: a short fixed series, and a long one of new examples under `-m fire`."""

    def wrap(prove: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("examples", [short, pytest.param(LONG, marks=pytest.mark.fire)])
        def test(examples: int) -> None:
            fixed = examples == short
            phases = [Phase.explicit, Phase.generate] if fixed else list(Phase)
            bounds = settings(
                max_examples=examples, derandomize=fixed, deadline=None, database=None, phases=phases,
                suppress_health_check=NO_CHECKS,
            )  # fmt: skip
            bounds(given(**drawn)(prove))()

        test.__name__, test.__doc__ = prove.__name__, prove.__doc__
        return test

    return wrap


def answer(table: pa.Table, good: list[int], more: dict[str, bytes] | None = None, **sections: Any) -> SmallJob:
    """Answer a table in a job of its own, and hold what no row may change.

    Args:
        table: The input, with a column `id`; row 3 has the id "3".
        good: Rows that must be answered.
        more: Other input files by name.
        sections: Sections of the spec.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = SmallJob(Path(folder))
        job.write(table)
        for name, data in (more or {}).items():
            job.put(f"input/{name}", data)
        engine = sections.pop("engine", {})
        job.engine |= {"max_num_seqs": 8} | engine
        for name, section in sections.items():
            job.set(name, **section)
        job.answer()
        assert job.finalise() == []
        assert verify(job.ledger).problems == ()
        results = job.records("results", ["row_id", "id", "sample"])
        errors = job.records("errors", ["row_id", "id", "error_code", "message"])
        ended = [row["row_id"] for row in results + errors if not row.get("sample")]
        assert sorted(ended) == sorted(job.row_ids())
        letters = {row["id"]: (row["error_code"], row["message"]) for row in errors}
        assert not {one: said for one, said in letters.items() if said[0] == ErrorCode.INTERNAL}
        answered = {row["id"] for row in results}
        assert {str(row) for row in good} <= answered, letters
        return job


def among(hostile: list[Any], good: Any, kind: pa.DataType | None = None) -> tuple[pa.Array, list[int]]:
    """Hostile cells with a good one before, between and after them; and where the good ones are."""
    cells = [good]
    for cell in hostile:
        cells += [cell, good]
    return pa.array(cells, kind), list(range(0, len(cells), 2))


def with_ids(column: pa.Array, name: str) -> pa.Table:
    ids = [str(row) for row in range(len(column))]
    return pa.table({"id": ids, name: column, "question": [GOOD] * len(column)})


# Cells

TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            *(
                "[THINK]",
                "[/THINK]</s>",
                "[INST] x [/INST]",
                "\x00",
                "\ufeff",
                "\u202e",
                "{{ 7 * 7 }}",
                "{% for x in y %}",
            ),
            *(
                " " * 100_000,
                "a" * 300_000,
                "é" * 9000,
                "\U0010ffff" * 50,
                "\n" * 50_000,
                "𓀀" * 3000,
                "../../etc/passwd",
            ),
        ]
    ),
)


@series(hostile=st.lists(TEXTS | st.none(), min_size=4, max_size=8))
def test_texts(hostile: list[str | None]) -> None:
    column, good = among(hostile, GOOD, pa.string())
    table = pa.table({"id": [str(row) for row in range(len(column))], "question": column})
    answer(table, good)


@series(hostile=st.lists(st.binary(max_size=40), min_size=4, max_size=8))
def test_bytes_that_a_file_calls_text(hostile: list[bytes]) -> None:
    cells, good = among(hostile, GOOD.encode(), pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())  # as a careless writer does
    table = pa.table({"id": [str(row) for row in range(len(column))], "question": column})
    answer(table, good)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["items", "values", "n", "text"]
STRUCT = pa.struct([("items", pa.string()), ("values", pa.list_(pa.int64())), ("n", pa.int64()), ("text", pa.string())])
STRUCTS = st.none() | st.fixed_dictionaries(
    {
        "items": st.none() | TEXTS,
        "values": st.none() | st.lists(st.none() | st.integers(-9, 10**6), max_size=3),
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "text": st.none() | TEXTS,
    }
)
TEMPLATES = [
    "{{ row.items }} and {{ row.values }}",
    "{{ question }}{% for x in row.values %}{{ x }},{% endfor %}{{ row.text | upper }}",
    "{{ question }}{{ '.' * row.n }}",
    "{{ question }}{% for i in range(row.n) %}{{ i }}{% endfor %}",
    "{{ question }}{{ row.text | replace('a', row.text) | wordwrap(3) }}",
]


@series(hostile=st.lists(STRUCTS, min_size=3, max_size=6), template=st.sampled_from(TEMPLATES))
def test_fields_of_a_template(hostile: list[Any], template: str) -> None:
    column, good = among(hostile, {"items": "good", "values": [1], "n": 1, "text": "good"}, STRUCT)
    answer(
        with_ids(column, "row"), good, input={"columns": {"id": "id"}}, prompt={"template": template, "system": "none"}
    )


# Chats

CHAT = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            (
                "content",
                pa.list_(pa.struct([("type", pa.string()), ("text", pa.string()), ("image_url", pa.string())])),
            ),
        ]
    )
)
PARTS = st.none() | st.fixed_dictionaries(
    {
        "type": st.none() | st.sampled_from(["text", "image_url", "image", "audio"]),
        "text": st.none() | TEXTS,
        "image_url": st.none()
        | st.sampled_from(["data:image/png;base64,AAAA", "data:,", "/proc/self/mem", "x://y", "http://"]),
    }
)
MESSAGES = st.none() | st.fixed_dictionaries(
    {
        "role": st.none() | st.sampled_from(["user", "assistant", "system", "tool", "USER"]),
        "content": st.none() | st.lists(PARTS, max_size=3),
    }
)


@series(hostile=st.lists(st.none() | st.lists(MESSAGES, max_size=3), min_size=4, max_size=8))
def test_chats(hostile: list[Any]) -> None:
    fine = [{"role": "user", "content": [{"type": "text", "text": GOOD, "image_url": None}]}]
    column, good = among(hostile, fine, CHAT)
    table = with_ids(column, "chat").drop_columns(["question"])
    answer(table, good, input={"columns": {"id": "id", "messages": "chat"}})


# Images and documents


def picture(kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Pillow.linear_gradient("L").resize((40, 30)).convert("RGB").save(sink, kind, **options)
    return sink.getvalue()


PICTURES = [
    *(picture(kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "TGA", "ICNS", "JPEG2000")),
    picture("JPEG", progressive=True),
    picture("TIFF", compression="tiff_lzw"),
]


@st.composite
def damaged(draw: Callable[..., Any], whole: list[bytes]) -> bytes:
    """A file with some bytes changed, cut out, doubled or moved."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        act = draw(st.sampled_from(["set", "cut", "double", "zero", "ones"]))
        size = draw(st.integers(1, 8))
        if act == "set":
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif act == "cut":
            del data[at : at + draw(st.integers(1, 200))]
        elif act == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        else:
            data[at : at + size] = (b"\0" if act == "zero" else b"\xff") * size
    return bytes(data)


@series(hostile=st.lists(damaged(PICTURES) | st.binary(max_size=20) | st.none(), min_size=6, max_size=10))
def test_images(hostile: list[bytes | None]) -> None:
    column, good = among(hostile, PICTURES[0], pa.binary())
    columns = {"id": "id", "prompt": "question", "images": ["picture"]}
    answer(with_ids(column, "picture"), good, input={"columns": columns}, limits={"max_image_pixels": 10**6})


DOCUMENTS = [
    text_pdf("page one", "page two"),
    "plain text\fof two pages".encode("utf-16"),
    picture("TIFF"),
    PICTURES[0],
]


@series(
    hostile=st.lists(damaged(DOCUMENTS) | st.binary(max_size=20) | st.none(), min_size=6, max_size=10),
    overflow=st.sampled_from(["error", "truncate", "map_reduce"]),
)
def test_documents(hostile: list[bytes | None], overflow: str) -> None:
    column, good = among(hostile, DOCUMENTS[0], pa.binary())
    read = {
        "columns": {"id": "id", "prompt": "question", "document": "file"},
        "document": {"mode": "both", "overflow": overflow},
    }
    limits = {"max_image_pixels": 10**6, "document_memory_mb": 512, "document_timeout_s": 10}
    answer(with_ids(column, "file"), good, input=read, limits=limits)


# Answers

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "number", "multipleOf": 0.01},
        "day": {"type": ["string", "null"], "format": "date"},
        "lines": {
            "type": "array",
            "items": {"type": "object", "properties": {"n": {"type": "integer"}}},
            "uniqueItems": True,
        },
        "note": {"type": "string", "pattern": r"^(\w+\s?)*$"},
    },
    "required": ["total"],
}
EXPONENTS = st.sampled_from([0, -400, 400, 325, 10**6, -(10**9), 10**20, -(10**20)]) | st.integers(-(10**20), 10**20)
ANSWERS = st.one_of(
    st.builds(
        '{{"total": {}e{}}}'.format, st.sampled_from(["0", "-0.0", "1", "-7.5", "12345678901234567.5"]), EXPONENTS
    ),
    VALUES.map(json.dumps),
    st.fixed_dictionaries(
        {"total": VALUES}, optional={"day": VALUES, "lines": st.lists(VALUES, max_size=3), "note": VALUES}
    ).map(json.dumps),
    st.sampled_from(
        [
            '{"total": NaN}',
            '{"total": 1e999}',
            '{"total": 1, "total": 2}',
            "[" * 5000,
            '{"total": 1, "note": "\\ud800"}',
            '{"total": 1, "more": "\\udfff"}',
            '{"total": 1, "note": "' + "a" * 40 + '!"}',
            '{"total": 12345678901234567.01}',
            '{"total": 1, "lines": [' + '{"n": 99999999999999999999}' + "]}",
            "\\boxed{" * 300,
            '{"total": 19.99}',
            "",
        ]
    ),
    st.text(max_size=50),
)


def scripted(answers: list[str]) -> tuple[pa.Table, list[int], list[dict[str, Any]]]:
    """Rows that the scripted engine answers so; good rows get an answer that fits."""
    column, good = among(answers, '{"total": 7}')
    questions = [f"Row <{row}>?" for row in range(len(column))]
    rules = [{"contains": f"<{row}>", "answer": text} for row, text in enumerate(column.to_pylist())]
    table = pa.table({"id": [str(row) for row in range(len(column))], "question": questions})
    return table, good, rules


QUICK = {"answer_timeout_s": 1}
BESIDE = {
    "expected": odd_values() | st.lists(ANSWERS | st.none(), min_size=1, max_size=5).map(lambda texts: pa.array(texts)),
    "more": odd_values(),
    "shape": st.sampled_from(SHAPES),
}
READ = {"columns": {"id": "id", "prompt": "question", "expected": "truth"}, "carry": ["more"]}


def beside(table: pa.Table, expected: pa.Array, more: pa.Array, shape: str) -> pa.Table:
    """The table with a column of right answers, and one that is only carried."""
    rows, as_dictionary = table.num_rows, "dictionary" if shape == "dictionary" else "plain"
    return table.append_column("truth", filled(expected, rows, as_dictionary)).append_column(
        "more", filled(more, rows, shape)
    )


@series(short=3, answers=st.lists(ANSWERS, min_size=4, max_size=7), vote=st.booleans(), **BESIDE)
def test_answers_by_a_schema(answers: list[str], vote: bool, **columns: Any) -> None:
    table, good, rules = scripted(answers)
    table = beside(table, **columns)
    how = {"schema": SCHEMA} | ({"vote": "majority"} if vote else {})
    answer(
        table, good, engine={"script": rules}, answer=how, limits=QUICK, input=READ,
        sampling={"n": 2 if vote else 1, "max_tokens": 2000}, reasoning={"budget_tokens": 8},
    )  # fmt: skip


@series(
    short=3,
    answers=st.lists(ANSWERS, min_size=4, max_size=7),
    extract=st.sampled_from(
        ["boxed", "whole", r"(?P<answer>(?:\d+[.,]?)+)$", r"(?P<answer>(a|aa)+)!x", r"(?P<answer>.*)"]
    ),
    **BESIDE,
)
def test_answers_by_extraction(answers: list[str], extract: str, **columns: Any) -> None:
    table, good, rules = scripted([*answers, "1" * 60 + " EUR.", "a" * 60])
    table = beside(table, **columns)
    answer(
        table, good, engine={"script": rules}, answer={"extract": extract}, limits=QUICK, input=READ,
        sampling={"max_tokens": 2000},
    )  # fmt: skip


# Parquet


def parquet(rows: int = 300) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": [f"b{row}" for row in range(rows)], "question": [f"{GOOD} {row}" for row in range(rows)]})
    pq.write_table(table, sink, row_group_size=100, data_page_size=400)
    return sink.getvalue()


@series(file=damaged([parquet()]))
def test_a_damaged_file_beside_a_good_one(file: bytes) -> None:
    column, good = among(["x", "y"], GOOD)
    table = pa.table({"id": [str(row) for row in range(len(column))], "question": column})
    answer(table, good, {"b.parquet": file}, input={"on_bad_file": "dead_letter", "shard_rows": 50})


@series(tail=st.integers(9, 600), new=st.binary(min_size=1, max_size=4))
def test_a_footer_that_lies_beside_a_good_file(tail: int, new: bytes) -> None:
    file = bytearray(parquet())
    file[-tail : -tail + len(new)] = new
    column, good = among(["x"], GOOD)
    table = pa.table({"id": [str(row) for row in range(len(column))], "question": column})
    answer(table, good, {"b.parquet": bytes(file)}, input={"on_bad_file": "dead_letter", "shard_rows": 50})


@series(file=damaged([parquet(30)]))
def test_a_damaged_file_alone_is_one_message(file: bytes) -> None:
    """A plan over it alone works, or is refused by name."""
    with tempfile.TemporaryDirectory() as folder:
        job = SmallJob(Path(folder))
        job.put("input/a.parquet", file)
        refused: str | None = None
        try:
            job.answer()
        except InputError as error:
            refused = str(error)
        assert "a.parquet" in (refused or "a.parquet")
        assert refused or job.finalise() == []
