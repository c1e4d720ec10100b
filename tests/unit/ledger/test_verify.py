"""The proof as a whole, and the manifest's sums."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.book import Book, stored
from support.small_job import SmallJob
from support.spoiled_output import an_object, problems, sign

from magbatch.ledger.layout import MANIFEST, PAGE, PLAN, REPORT, SPEC
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import RetryRecord
from magbatch.ledger.verify import Verification, verify


def test_what_nobody_has_touched_verifies(out: Path) -> None:
    found = verify(Ledger(str(out)))
    assert (found.planned, found.answered, found.failed, found.open) == (10, 9, 1, 0)
    assert (found.complete, found.verified, found.problems, found.notes) == (True, True, (), ())
    assert [file.name for file in stored(Ledger(str(out))).files] == [SPEC, PLAN, REPORT, PAGE]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"planned_rows": 11}, "says planned_rows 11, the plan gives 10"),
        ({"job": "other"}, "says job other, the spec gives small"),
        ({"schema_version": "0"}, "says schema_version 0, the objects give 1"),
        ({"plan_sha256": "0" * 64}, "says plan_sha256 000"),
        ({"model_revision": "x"}, "says model_revision x, the plan gives"),
        ({"files": ()}, f"files lacks {SPEC}"),
        ({"graded_by": None}, "graded_by is missing"),
        ({"graded_by": 2}, "says graded_by 2, its version has 3"),
        ({"retries": (RetryRecord("", dropped=True),)}, "has 1 retries, _magbatch/report.json has counted 0"),
        ({"version": 1, "files": ()}, f"has version 1, but a later version wrote {REPORT}"),
        ({"objects": ()}, "not in the manifest"),
    ],
)
def test_a_checksum_that_fits_does_not_help_a_lie(out: Path, changes: dict[str, Any], named: str) -> None:
    sign(out, **changes)
    found = problems(out)
    assert any(named in problem for problem in found), found


def test_every_sum_is_counted_again(out: Path) -> None:
    manifest = stored(Ledger(str(out)))
    for name in json.loads(manifest.to_json()).keys() & set(type(manifest.totals).__slots__):
        old = getattr(manifest.totals, name)
        sign(out, totals=replace(manifest.totals, **{name: old + 1 if isinstance(old, int) else old | {"x": 1}}))
        (problem,) = problems(out)
        assert f"says {name} " in problem


def test_a_job_that_is_not_complete_is_summed_up_without_alarm(made: SmallJob, out: Path) -> None:
    (out / MANIFEST).unlink()
    an_object(out).unlink()
    found = verify(Ledger(str(out)))
    assert (found.planned, found.answered, found.failed, found.open) == (10, 5, 1, 4)
    assert (found.complete, found.verified, found.problems) == (False, False, ())


def test_a_job_that_lost_its_manifest_is_not_verified(book: Book) -> None:
    book.complete()
    book.finalise()
    book.ledger.store.delete(MANIFEST)
    found = verify(book.ledger)
    assert (found.complete, found.verified, found.problems, found.open) == (False, False, (), 0)


def test_an_unfinished_job_verifies_as_unfinished(book: Book) -> None:
    book.answered(1, 0, 1)
    assert verify(book.ledger) == Verification(
        planned=12, answered=2, failed=0, open=10, objects=1, complete=False, problems=()
    )


def test_a_real_job_is_whole_from_its_input_to_its_proof(either_job: SmallJob) -> None:
    either_job.ask(9, question=[None if row == 4 else f"What is {row}?" for row in range(9)])
    either_job.put("input/bad.parquet", b"no Parquet")
    either_job.set("input", on_bad_file="dead_letter", shard_rows=4)
    either_job.answer()
    assert either_job.finalise() == []
    assert verify(either_job.ledger).problems == ()
    ids = {f"a{row}" for row in range(9)}
    assert {row["id"] for row in either_job.records()} == ids - {"a4"}
    assert {row["id"] for row in either_job.records("errors")} == {"a4", None}
    assert sorted(either_job.done() + either_job.done("errors")) == sorted(either_job.row_ids())
