"""Answers held against the right ones, where the input knows them."""

import json
import unicodedata
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.book import rewrite_manifest
from support.odd_columns import number_of
from support.small_job import SmallJob

from magbatch.answers.grading import Grading
from magbatch.errors import SpecError
from magbatch.ledger.finalise import finalise
from magbatch.ledger.layout import REPORT
from magbatch.ledger.verify import verify
from magbatch.schema import RESULTS
from magbatch.spec.columns import carried_columns
from magbatch.totals import Totals


def results(answers: list[str | None], expected: pa.Array) -> pa.Table:
    """The columns of an object that totals need."""
    rows = len(answers)
    return pa.table(
        {
            "sample": pa.array([0] * rows, pa.int32()),
            **{name: pa.array([1] * rows, pa.int32()) for name in ("prompt_tokens", "cached_tokens")},
            **{name: pa.array([1] * rows, pa.int32()) for name in ("reasoning_tokens", "answer_tokens")},
            "reasoning_status": ["complete"] * rows,
            "latency_s": [0.5] * rows,
            "answer": pa.array(answers, pa.large_string()),
            "truth": expected,
        }
    )


@pytest.mark.parametrize(
    ("answers", "expected", "graded", "right"),
    [
        (["19.22", "5"], pa.array(["19.22", "6"]), 2, 1),
        (["19.22", "5"], pa.array(["19.22", None]), 1, 1),  # nobody knows the second: it is not counted
        ([None, "5"], pa.array(["", "5"]), 2, 1),  # null is never right
        ([None, None], pa.array([0, None], pa.int64()), 1, 0),
        ([None, "5"], pa.array(["x", None]), 1, 0),
        ([" 562\n", "7"], pa.array(["562", " 7"], pa.large_string()), 2, 2),
        (["562", "-7"], pa.array([562, -8], pa.int64()), 2, 1),
        (["562.0", "+7", "56 2"], pa.array([562, 7, 562], pa.int32()), 3, 2),
        (["12345678901234567", "12345678901234568"], pa.array([12345678901234567] * 2, pa.int64()), 2, 1),
        (["0.5", "2"], pa.array([0.5, None], pa.float64()), 1, 1),
        (["19.90", "12345678901", "1e3", "0.1", "nan", "1_0"], pa.array([19.9, 12345678901, 1000, 0.3, 1, 10.0]), 6, 3),
        (["19.90", "19.91"], pa.array([19.9, 19.9], pa.float32()), 2, 1),
        (["19.90", "19.901"], pa.array([Decimal("19.9"), Decimal("19.9")], pa.decimal128(10, 2)), 2, 1),
        (["1e999999", "-0"], pa.array([5, 0], pa.int64()), 2, 1),
        (["true", "2"], pa.array([True, False]), 2, 1),
        (["True", " FALSE ", "1", "no"], pa.array([True, False, True, False]), 4, 2),
        (["Yes", "yes"], pa.array(["Yes", "Yes"]), 2, 1),
        (["007", "19.90"], pa.array(["7", "19.9"]), 2, 0),  # as text these differ, and text is what is known
        ([unicodedata.normalize("NFD", "é")], pa.array(["é"]), 1, 1),
        (["a", "b"], pa.array(["a", "c"]).dictionary_encode(), 2, 1),
        (["2026-03-01", "2026-03-02"], pa.array([date(2026, 3, 1)] * 2), 2, 1),
        (["2026-03-01T12:00:00Z", "2026-03-01t14:00:00+01:00"], pa.array([datetime(2026, 3, 1, 12)] * 2), 2, 1),
        (["12:00:00Z", "12:00", "noon"], pa.array([time(12)] * 3), 3, 2),
        (["a", "b"], pa.array([None, None], pa.string()), 0, 0),
        ([], pa.array([], pa.string()), 0, 0),
    ],
)
def test_an_answer_is_right_when_it_is_what_is_expected_by_its_type(
    answers: list[str | None], expected: pa.Array, graded: int, right: int
) -> None:
    totals = Totals()
    totals.add(RESULTS, results(answers, expected), Grading("truth"))
    assert (totals.graded, totals.right, totals.answered) == (graded, right, len(answers))


# By type: the integers it is stored as, the one of a moment or number, and that in words.
DAY, NOON = 20513, 20513 * 86400 + 43200  # 2026-03-01
MOMENTS = {
    pa.timestamp(unit, tz=zone): (pa.int64(), NOON * scale, "2026-03-01T12:00:00Z")
    for unit, scale in {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.items()
    for zone in (None, "UTC", "Europe/Berlin", "+05:30", "Nowhere/Land")
}
STORED: dict[pa.DataType, tuple[pa.DataType, int, str]] = {
    **MOMENTS,
    pa.date32(): (pa.int32(), DAY, "2026-03-01"),
    pa.date64(): (pa.int64(), DAY * 86_400_000, "2026-03-01"),
    pa.time32("s"): (pa.int32(), 43200, "12:00:00"),
    pa.time32("ms"): (pa.int32(), 43_200_000, "12:00:00"),
    pa.time64("us"): (pa.int64(), 43_200_000_000, "12:00:00"),
    pa.time64("ns"): (pa.int64(), 43_200_000_000_000, "12:00:00"),
    pa.uint64(): (pa.int64(), 7, "7.0"),
    pa.int32(): (pa.int32(), 7, "7"),
    pa.float16(): (pa.int16(), 0x4700, "7"),
    pa.float32(): (pa.int32(), 0x40E00000, "7"),
    pa.float64(): (pa.int64(), 0x401C000000000000, "7"),
    pa.decimal32(9, 2): (pa.int32(), 700, "7.0"),
    pa.decimal64(18, -18): (pa.int64(), 7, "7e18"),
}
ANY_ANSWER = st.none() | st.text(max_size=9) | st.sampled_from(
    [
        *("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "31648-04-20", "1e9999", "-1e-9999", "9" * 5000),
        *("24:00:00", "25:61", "true", "inf", "nan", "65520", "3.5e38", "[1]", "{}", "\x00"),
    ]
)  # fmt: skip


@pytest.mark.parametrize("kind", STORED, ids=str)
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_no_value_of_any_type_ends_the_grading_and_the_others_count(kind: pa.DataType, as_dictionary: bool) -> None:
    storage, good, said = STORED[kind]

    @settings(max_examples=15, derandomize=True, deadline=None, database=None)
    @given(st.lists(st.tuples(number_of(storage) | st.none(), ANY_ANSWER), max_size=6))
    def prove(pairs: list[tuple[int | None, str | None]]) -> None:
        cells, answers = [good, *(cell for cell, _ in pairs), good], [said, *(text for _, text in pairs), said]
        truth = pa.array(cells, storage).view(kind)
        if as_dictionary:
            truth = pa.DictionaryArray.from_arrays(pa.array(range(len(cells)), pa.int32()), truth)
        graded, right = Grading("truth")(results(answers, truth))
        assert graded == sum(cell is not None for cell in cells)
        assert 2 <= right <= graded

    prove()


def spread(kind: pa.DataType, cells: list[bytes]) -> pa.Array:
    """Values of a type of fixed width, by their bytes."""
    return pa.Array.from_buffers(kind, len(cells), [None, pa.py_buffer(b"".join(cells))])


@pytest.mark.parametrize(
    ("truth", "graded", "right"),
    [
        (pa.array([b"\xff", b"7"]).view(pa.string()), 2, 1),  # as a careless writer calls it text
        (pa.array([b"\xff", b"7"], pa.large_binary()).view(pa.large_string()), 2, 1),
        (pa.array([b"\xff", b"7"]).view(pa.string()).dictionary_encode(), 2, 1),
        (pa.array(["0e99999999999999999999", "7"]), 2, 1),
        (pa.array([None, "7"]).dictionary_encode(null_encoding="encode"), 1, 1),
        (spread(pa.decimal128(38, 2), [b"\xff" * 15 + b"\x7f", (700).to_bytes(16, "little")]), 2, 1),
        (spread(pa.decimal128(38, -(2**31)), [b"\x01" * 16, b"\x02" * 16]), 2, 0),
        (spread(pa.decimal256(76, 2**31 - 1), [b"\x01" * 32, b"\x02" * 32]), 2, 0),
        (spread(pa.month_day_nano_interval(), [b"\xff" * 15 + b"\x7f", b"\x00" * 16]), 2, 0),
        (pa.array([2**62, 7]).view(pa.duration("s")), 2, 0),
        (pa.array([2**62 + 1, 7]).view(pa.duration("ns")), 2, 0),
        (pa.array([b"\xff" * 16, b"\x00" * 16], pa.binary(16)).cast(pa.uuid()), 2, 0),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{", "7"])), 2, 1),
        (pa.array([b"\xff", b"7"]), 2, 0),
        (pa.array([[2**60], [7]], pa.list_(pa.timestamp("s"))), 2, 0),
        (pa.StructArray.from_arrays([pa.array([10**7, 7], pa.int32()).view(pa.date32())], ["x"]), 2, 0),
        (pa.array([[("x", 1)], [("y", 7)]], pa.map_(pa.string(), pa.int64())), 2, 0),
        (pa.nulls(2), 0, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_a_cell_that_cannot_be_compared_is_not_right(truth: pa.Array, graded: int, right: int, as_json: bool) -> None:
    assert Grading("truth", as_json=as_json)(results(["[]", "7"], truth)) == (graded, right)


@pytest.mark.parametrize(
    "truth",
    [
        pa.array([10**7, 5], pa.int32()).view(pa.date32()),
        pa.array([2**60, 5]).view(pa.timestamp("us")),
        pa.array([2**50, 5]).view(pa.timestamp("s", tz="UTC")),
        pa.array([2**60, 5]).view(pa.timestamp("us", tz="Nowhere/Land")),
        pa.array(['{"x": 0e99999999999999999999}', '{"x": 5}']),
    ],
    ids=lambda truth: str(truth.type),
)
def test_a_job_ends_and_verifies_whatever_is_expected(job: SmallJob, truth: pa.Array) -> None:
    job.ask(2, truth=truth)
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    job.set("answer", schema={"type": "object", "properties": {"x": {}, "y": {}}})
    job.engine["script"] = [{"contains": "What", "answer": '{"x": 5}'}]
    job.answer()
    assert job.finalise() == []
    assert verify(job.ledger).problems == ()
    manifest = job.ledger.manifest()
    assert manifest is not None
    right = 1 if pa.types.is_string(truth.type) else 0
    assert [getattr(manifest.totals, name) for name in ("answered", "failed", "graded", "right")] == [2, 0, 2, right]


BOTH = {"total": {"type": "number"}, "day": {"type": "string", "format": "date"}}


@pytest.mark.parametrize(
    ("answer", "said", "truth", "right"),
    [
        ({"extract": "boxed"}, r"It is \\boxed{5}.", pa.array([5, 6], pa.int64()), 1),
        ({"extract": "boxed"}, r"It is \\boxed{5}.", pa.array(["5", "It is 5."]), 1),
        ({"extract": "boxed"}, "It is 5.", pa.array(["", "5"]), 0),
        ({"schema": {"total": {"type": "number"}}}, '{"total": 19.90}', pa.array([19.9, 19.91]), 1),
        ({"schema": {"total": {"type": "number"}}}, '{"total": 19.90}', pa.array(["19.9", "x"]), 1),
        ({"schema": {"paid": {"type": "boolean"}}}, '{"paid": true}', pa.array(["True", "false"]), 1),
        ({"schema": {"x": {"type": ["string", "integer"]}}}, '{"x": "yes"}', pa.array(["yes", '"yes"']), 1),
        ({"schema": {"x": {"type": ["string", "null"]}}}, '{"x": null}', pa.array(["", "null"]), 0),
        ({"schema": {"x": {"type": "string", "format": "date"}}}, '{"x": "2026-03-01"}',
         pa.array([date(2026, 3, 1), date(2026, 3, 2)]), 1),
        ({"schema": {"x": {"type": "array", "items": {"type": "number"}}}}, '{"x": [1.0, 2]}',
         pa.array(["[1, 2.00]", "[2, 1]"]), 1),
        ({"schema": BOTH}, '{"total": 19.90, "day": "2026-03-01"}',
         pa.array(['{"day":"2026-03-01","total":19.9}', '{"total": 19.9}']), 1),
        ({"extract": "boxed", "vote": "majority"}, r"\\boxed{5}", pa.array([5.0, 6.0]), 1),
        ({"schema": {"total": {"type": "number"}}, "vote": "majority"}, '{"total": 19.90}', pa.array([19.9, 20]), 1),
        ({}, "Ü", pa.array(["Ü".encode(), b"U"]), 1),  # text that its file does not call text
        ({"vote": "majority"}, "Five", pa.array(["Five", "five"]), 1),
    ],
)  # fmt: skip
def test_what_the_job_makes_of_an_answer_is_held_against_the_right_one(
    job: SmallJob, answer: dict[str, Any], said: str, truth: pa.Array, right: int
) -> None:
    if "schema" in answer:
        answer = answer | {"schema": {"type": "object", "properties": answer["schema"]}}
    job.ask(2, truth=truth)
    job.set("answer", **answer)
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    if "vote" in answer:
        job.set("sampling", n=2, temperature=0.5)
    job.engine["script"] = [{"contains": "What", "answer": said.replace(r"\\", "\\")}]
    job.answer()
    assert job.finalise() == []
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert (manifest.totals.graded, manifest.totals.right) == (2, right)
    assert verify(job.ledger).problems == ()


def test_a_manifest_whose_right_answers_an_older_version_counted_is_not_held_against_this_one(job: SmallJob) -> None:
    job.ask(2, truth=pa.array([19.9, 5]))
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    job.engine["script"] = [{"contains": "What", "answer": "19.90"}]
    job.answer()
    job.finalise()
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert (manifest.totals.right, verify(job.ledger).problems) == (1, ())
    rewrite_manifest(job.ledger, totals=replace(manifest.totals, right=0))
    assert list(verify(job.ledger).problems) == ["_magbatch/manifest.json says right 0, the objects give 1"]
    job.ledger.store.write(REPORT, json.dumps({"retries_counted": 0}).encode())
    rewrite_manifest(job.ledger, version=1, files=(), graded_by=None)
    assert verify(job.ledger).problems == ()


def test_nothing_is_graded_where_nothing_is_expected() -> None:
    totals = Totals()
    totals.add(RESULTS, results(["5"], pa.array(["5"])))
    assert (totals.graded, totals.right) == (0, 0)


def test_every_sample_of_a_job_is_graded(tmp_path: Path) -> None:
    asked = SmallJob(tmp_path / "asked")
    asked.ask(6)
    asked.set("sampling", n=2)
    asked.answer()
    answers = {row["id"]: row["answer"] for row in asked.records(RESULTS)}
    truth = [answers[f"a{row}"] if row % 2 else f"not {answers[f'a{row}']}" for row in range(6)]

    graded = SmallJob(tmp_path / "graded")
    graded.ask(6, truth=truth)
    graded.set("sampling", n=2)
    graded.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    graded.answer()
    totals, missing = finalise(
        graded.ledger, graded.spec(), graded.plan, lambda kind, table: None, lambda totals: {}, lambda: None
    )
    assert missing == []
    assert (totals.graded, totals.right) == (12, 6)
    assert {row["id"]: row["truth"] for row in graded.records(RESULTS)} == dict(zip(answers, truth, strict=True))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["a"], ["b"]]), r"list<"),
        (pa.array([{"a": 1}, {"a": 2}]), r"struct<"),
    ],
)
def test_what_has_no_text_cannot_be_expected(job: SmallJob, column: pa.Array, kind: str) -> None:
    job.write(pa.table({"question": ["?", "?"], "truth": column}))
    job.set("input", columns={"prompt": "question", "expected": "truth"})
    with pytest.raises(SpecError, match=rf"input\.columns\.expected: the column 'truth' is {kind}"):
        job.plan  # noqa: B018


def test_expected_answers_are_carried_once(job: SmallJob) -> None:
    def carried(**fields: Any) -> list[str]:
        return carried_columns(job.spec(input=fields).input)

    columns = {"id": "id", "prompt": "question", "expected": "truth"}
    assert carried(columns=columns) == ["id", "truth"]
    assert carried(columns=columns, carry=["more"]) == ["id", "more", "truth"]
    assert carried(columns=columns, carry=["truth", "more"]) == ["id", "truth", "more"]
