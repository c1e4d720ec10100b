"""A committed object is read whole and checked, or written through a spool and read back."""

import hashlib
from typing import Any

import pyarrow as pa
import pytest
from support.book import Book

from magbatch.errors import OutputError
from magbatch.ledger.contract import narrow_columns, schema_of
from magbatch.ledger.objects import (
    Spool,
    StoredObject,
    damaged,
    read_columns,
    read_object,
    read_totals,
    row_groups,
    row_ids_of,
)
from magbatch.schema import ERRORS, RESULTS, ObjectName
from magbatch.totals import Totals


def read(book: Book, name: ObjectName, sha256: str | None = None) -> StoredObject:
    found = read_object(book.ledger.store, name, narrow_columns(book.spec, book.plan), sha256)
    assert isinstance(found, StoredObject), found
    return found


def test_an_object_is_read_with_its_checksum_and_counts(book: Book) -> None:
    name = book.answered(0, 2, 0)
    found = read(book, name)
    data = book.ledger.store.read(str(name))
    assert found.entry().to_dict() == {
        "name": str(name),
        "rows": 2,
        "records": 2,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert sorted(found.row_ids) == sorted([book.ids[0][0], book.ids[0][2]])
    assert "id" in found.table.column_names
    assert read(book, name, found.sha256) == found or found.table.num_rows == 2


def test_content_with_another_checksum_is_not_parsed(book: Book) -> None:
    name = book.failed(0, 1)
    assert read_object(book.ledger.store, name, {}, "0" * 64) == f"{name}: its checksum differs from the manifest's"


def test_a_missing_object_is_a_problem_and_not_an_error(book: Book) -> None:
    name = ObjectName(RESULTS, 0, "abc", 0, 1)
    problem = read_object(book.ledger.store, name, {})
    assert isinstance(problem, str)
    assert problem.startswith(f"{name}: cannot be read: ")
    with pytest.raises(FileNotFoundError):
        read_columns(book.ledger.store, name, ["row_id"])


def test_columns_and_totals_are_read_alone(book: Book) -> None:
    name = book.answered(0, 0, 1)
    assert row_ids_of(read_columns(book.ledger.store, name, ["row_id"])) == book.ids[0][:2]
    found = read(book, name)
    assert read_totals(book.ledger.store, name) == Totals.of(RESULTS, found.table)
    with pytest.raises(OutputError, match=r"has no column nope"):
        read_columns(book.ledger.store, name, ["nope"])


@pytest.mark.parametrize("group_bytes", [1, 1 << 20])
def test_a_spool_makes_one_object_of_several(book: Book, group_bytes: int) -> None:
    store, schema = book.ledger.store, schema_of(book.spec, book.plan, RESULTS)
    names = [book.answered(0, 0, 1), book.answered(1, 3)]
    spool = Spool(RESULTS, schema, group_bytes)
    for name in names:
        for table in row_groups(store, name):
            spool.add(table)
    assert spool.bytes > 0
    found = spool.commit(store, range(2), "merged", 0, narrow_columns(book.spec, book.plan))
    assert found.row_ids == spool.row_ids == [*book.ids[0][:2], book.ids[1][3]]
    assert (found.name.shards, found.name.rows, found.records) == (range(2), 3, 3)
    groups = list(row_groups(store, found.name, found.sha256))
    assert len(groups) == (2 if group_bytes == 1 else 1)
    assert pa.concat_tables(groups).schema.equals(schema)


def test_damage_is_not_copied_under_a_new_checksum(book: Book) -> None:
    name = book.answered(0, 0)
    with pytest.raises(OutputError, match="its checksum differs from the manifest's"):
        list(row_groups(book.ledger.store, name, "0" * 64))


def test_a_spool_refuses_columns_of_another_contract(book: Book) -> None:
    spool = Spool(ERRORS, schema_of(book.spec, book.plan, ERRORS))
    (table,) = row_groups(book.ledger.store, book.answered(0, 0))
    with pytest.raises(OutputError, match="an object of errors has other columns"):
        spool.add(table)


def test_an_object_that_is_not_what_was_written_is_found_at_its_commit(book: Book) -> None:
    class Forgetful:
        """A store that keeps nothing of a write."""

        root = book.ledger.store.root

        def write(self, name: str, data: bytes) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return getattr(book.ledger.store, name)

    spool = Spool(RESULTS, schema_of(book.spec, book.plan, RESULTS))
    store: Any = Forgetful()
    with pytest.raises(OutputError, match="the output is damaged"):
        spool.commit(store, range(1), "abc", 0, {})
    assert "magbatch verify" in str(damaged(store, "x: gone"))
