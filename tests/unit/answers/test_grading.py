"""Answers are compared with the right ones by type, and no value of any type ends the comparison."""

import unicodedata
from datetime import date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.odd_columns import number_of

from magbatch.answers.grading import Grading
from magbatch.spec import JobSpec


def results(answers: list[str | None], expected: pa.Array) -> pa.Table:
    """The columns of an object that are compared."""
    return pa.table(
        {
            "sample": pa.array([0] * len(answers), pa.int32()),
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
def test_an_answer_is_right_if_it_equals_the_expected_value_by_type(
    answers: list[str | None], expected: pa.Array, graded: int, right: int
) -> None:
    assert Grading("truth")(results(answers, expected)) == (graded, right)


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
def test_values_of_any_type_are_graded_without_an_error(kind: pa.DataType, as_dictionary: bool) -> None:
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
    ("said", "truth", "right"),
    [
        ("19.90", pa.array(["19.9", "x"]), 1),
        ("true", pa.array(["True", "false"]), 1),
        ('"yes"', pa.array(["yes", '"yes"']), 1),
        ("null", pa.array(["", "null"]), 0),
        ("[1.0, 2]", pa.array(["[1, 2.00]", "[2, 1]"]), 1),
    ],
)
def test_a_schemas_only_property_is_compared_by_its_type(said: str, truth: pa.Array, right: int) -> None:
    answers = [f'{{"x": {said}}}'] * 2
    assert Grading("truth", "answer", "x", as_json=True)(results(answers, truth)) == (2, right)


def spec(**answer: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "graded",
            "model": {"source": "builtin:tiny"},
            "input": {"path": "in", "columns": {"prompt": "q"}},
            "output": {"path": "out"},
            "sampling": {"n": 2},
            "answer": answer,
        }
    )


ONE, TWO = ({"type": "object", "properties": {name: {} for name in names}} for names in ("x", "xy"))


@pytest.mark.parametrize(
    ("answer", "grading"),
    [
        ({}, Grading("truth", "answer")),
        ({"extract": "boxed"}, Grading("truth", "extracted")),
        ({"schema": ONE}, Grading("truth", "answer", "x", as_json=True)),
        ({"schema": TWO}, Grading("truth", "answer", None, as_json=True)),
        ({"schema": ONE, "extract": "boxed"}, Grading("truth", "extracted")),
        ({"vote": "majority"}, Grading("truth", "vote")),
        ({"vote": "majority", "extract": "boxed", "schema": ONE}, Grading("truth", "vote")),
        ({"vote": "majority", "schema": ONE}, Grading("truth", "vote", "x", as_json=True)),
    ],
)
def test_the_vote_is_graded_before_the_extract_and_the_answer(answer: dict[str, object], grading: Grading) -> None:
    assert Grading.of(spec(**answer), "truth") == grading
    assert Grading.of(spec(**answer), None) is None


def test_a_vote_counts_once_for_all_samples() -> None:
    vote = pa.array([{"answer": "5", "share": 1.0}] * 3)
    table = pa.table({"sample": pa.array([0, 1, 0], pa.int32()), "vote": vote, "truth": ["5", "5", "6"]})
    assert Grading("truth", "vote")(table) == (2, 1)
