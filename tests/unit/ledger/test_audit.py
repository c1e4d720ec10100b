"""The rule that keeps one of two objects decides which objects count; damage is found before a job ends."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.book import Book, rewrite_manifest, stored
from support.small_job import SmallJob

from magbatch.errors import OutputError
from magbatch.ledger.audit import audit_output, audit_unit, planned_rows
from magbatch.ledger.objects import read_object
from magbatch.ledger.verify import verify
from magbatch.plan.plan import Plan
from magbatch.schema import ObjectName, new_attempt


def rewrite(book: Book, name: str, change: Callable[[pa.Table], pa.Table], as_name: str | None = None) -> None:
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(book.ledger.store.read(name)))), sink)
    book.ledger.store.write(as_name or name, sink.getvalue())


def first_result(book: Book) -> tuple[str, ObjectName]:
    name = book.job.objects()[0]
    part = ObjectName.parse(name)
    assert part is not None
    return name, part


def deleted_object(book: Book) -> list[str]:
    name, _ = first_result(book)
    book.ledger.store.delete(name)
    return [f"{name}: in the manifest, but missing", "gap: 2 planned rows of shard 0"]


def edited_byte(book: Book) -> list[str]:
    name, _ = first_result(book)
    data = bytearray(book.ledger.store.read(name))
    data[-12] ^= 1  # in the footer's last field: still a readable file
    book.ledger.store.write(name, bytes(data))
    return [f"{name}: "]


def edited_answer(book: Book) -> list[str]:
    name, _ = first_result(book)
    rewrite(
        book, name, lambda table: table.set_column(4, table.field(4), pa.array(["forged"] * 2, table.field(4).type))
    )
    return [f"{name}: its checksum differs from the manifest's"]


def damaged_object(book: Book) -> list[str]:
    name, _ = first_result(book)
    book.ledger.store.write(name, book.ledger.store.read(name)[:-10])
    return [f"{name}: cannot be read"]


def duplicate_object(book: Book) -> list[str]:
    name, part = first_result(book)
    copy = ObjectName(part.kind, part.shard, "zzzz", 0, part.rows)
    book.ledger.store.write(str(copy), book.ledger.store.read(name))
    return [f"{copy}: not in the manifest"]


def duplicate_that_seems_older(book: Book) -> list[str]:
    name, part = first_result(book)
    copy = ObjectName(part.kind, part.shard, "0000", 0, part.rows)
    book.ledger.store.write(str(copy), book.ledger.store.read(name))
    return [f"{copy}: not in the manifest"]


def row_twice_in_an_object(book: Book) -> list[str]:
    name, _ = first_result(book)
    rewrite(book, name, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    return [f"{name}: holds a row twice"]


def lying_name(book: Book) -> list[str]:
    name, part = first_result(book)
    other = ObjectName(part.kind, part.shard, part.attempt, part.seq, 3)
    book.ledger.store.move(name, str(other))
    return [f"{other}: not in the manifest", f"{name}: in the manifest, but missing"]


def name_of_another_shard(book: Book) -> list[str]:
    name, part = first_result(book)
    other = ObjectName(part.kind, 1, part.attempt, part.seq, part.rows)
    book.ledger.store.move(name, str(other))
    return [f"{other}: not in the manifest", "gap: 2 planned rows of shard 0"]


def shard_of_no_plan(book: Book) -> list[str]:
    name, part = first_result(book)
    other = ObjectName(part.kind, 99, part.attempt, part.seq, part.rows)
    book.ledger.store.write(str(other), book.ledger.store.read(name))
    return [f"{other}: not in the manifest"]


def unplanned_row(book: Book) -> list[str]:
    name, part = first_result(book)
    other = ObjectName(part.kind, part.shard, "zzzz", 0, 2)
    ids = pa.array(["of no plan", "neither this"])
    rewrite(book, name, lambda table: table.set_column(0, table.field(0), ids), str(other))
    return [f"{other}: not in the manifest"]


def foreign_object(book: Book) -> list[str]:
    book.ledger.store.write("results/extra.parquet", book.ledger.store.read(first_result(book)[0]))
    return ["results/extra.parquet: not an object of this job"]


def foreign_plan(book: Book) -> list[str]:
    plan = book.ledger.plan()
    assert plan is not None
    fewer = Plan.of(plan.table.slice(0, 2), plan.columns)
    book.ledger.store.write("_magbatch/plan.parquet", fewer.to_bytes())
    return ["_magbatch/plan.parquet: its checksum differs from the manifest's"]


def manifest_with_more(book: Book) -> list[str]:
    parts = stored(book.ledger).objects
    more = ObjectName.of("results/00000000-abc-0000.n1.parquet")
    rewrite_manifest(book.ledger, objects=(*parts, replace(parts[0], name=more)))
    return [f"{more}: in the manifest, but missing"]


@pytest.mark.parametrize(
    "spoil",
    [
        deleted_object, edited_byte, edited_answer, duplicate_object, duplicate_that_seems_older, lying_name,
        name_of_another_shard, shard_of_no_plan, unplanned_row, foreign_object,
        foreign_plan, manifest_with_more,
    ],
)  # fmt: skip
def test_verify_names_what_is_wrong(book: Book, spoil: Callable[[Book], list[str]]) -> None:
    book.complete()
    assert book.finalise() == []
    assert verify(book.ledger).problems == ()
    expected = spoil(book)
    found = verify(book.ledger).problems
    for part in expected:
        assert any(part in problem for problem in found), found


@pytest.mark.parametrize("spoil", [damaged_object, row_twice_in_an_object])
def test_bytes_that_the_manifest_does_not_vouch_for_are_not_looked_into(
    book: Book, spoil: Callable[[Book], list[str]]
) -> None:
    book.complete()
    expected = spoil(book)
    (problem,) = verify(book.ledger).problems  # there is no manifest yet
    assert problem.startswith(expected[0])
    book = Book(SmallJob(Path(book.job.root, "other")))
    book.complete()
    book.finalise()
    spoil(book)
    problems = verify(book.ledger).problems
    assert problems[0].endswith("its checksum differs from the manifest's")
    assert [problem.partition(":")[0] for problem in problems[1:]] == ["gap"]


@pytest.mark.parametrize(
    "spoil", [damaged_object, row_twice_in_an_object, lying_name, name_of_another_shard, unplanned_row]
)
def test_a_damaged_output_is_not_finalised(book: Book, spoil: Callable[[Book], list[str]]) -> None:
    book.complete()
    spoil(book)
    before = book.all_objects()
    with pytest.raises(OutputError, match=f"magbatch verify {book.ledger.path}"):
        book.finalise()
    assert book.ledger.manifest() is None
    assert book.all_objects() == before


def test_an_answer_comes_before_a_dead_letter_and_an_earlier_attempt_before_a_later_one(book: Book) -> None:
    letters, first, second = book.failed(0, 0, 2, 3), book.answered(0, 0, 1), book.answered(0, 1, 2)
    (unit, *_) = audit_output(book.ledger, book.plan, {})
    ids = book.ids[0]
    assert [(found.name, rows) for found, rows in unit.keep] == [
        (first, ids[:2]),
        (second, ids[2:3]),
        (letters, ids[3:]),
    ]
    assert (unit.superseded, unit.missing, unit.problems, unit.shards) == ([second, letters], [], [], range(1))


def test_rows_of_another_shard_or_of_no_plan_are_unplanned(book: Book) -> None:
    name = book.answered(0, 0)
    found = read_object(book.ledger.store, name, {})
    planned = {"another": 0, book.ids[0][0]: 1}
    unit = audit_unit(range(2), planned, [(name, found)])
    assert unit.unplanned == [f"row {book.ids[0][0]} in {name}"]
    assert unit.missing == ["another", book.ids[0][0]]


def test_objects_of_another_plan_are_not_read(book: Book) -> None:
    foreign = replace(book.answered(1, 0), attempt="0.of-another")
    foreign = ObjectName.of(str(foreign).replace(foreign.attempt, f"{new_attempt('0' * 12)}"))
    book.ledger.store.write(str(foreign), b"anything")
    unit = list(audit_output(book.ledger, book.plan, {}))[1]
    assert (unit.foreign, unit.problems) == ([foreign], [])
    assert foreign in unit.names


def test_planned_rows_know_their_shards(book: Book) -> None:
    assert planned_rows(book.plan, range(1, 9)) == {row_id: shard for shard in (1, 2) for row_id in book.ids[shard]}
