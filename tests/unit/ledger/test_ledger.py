import io
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.book import Book, Breaking, carry_out, rewrite_manifest, stored, whole_report
from support.small_job import SmallJob

from magbatch.errors import OutputError, SpecChangedError, StorageError
from magbatch.ledger.finalise import finalise
from magbatch.ledger.layout import MANIFEST
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.verify import Verification, verify
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, ObjectName, errors_schema, results_schema
from magbatch.spec import JobSpec
from magbatch.storage import open_store
from magbatch.totals import Totals


@pytest.fixture
def book(job: SmallJob) -> Book:
    return Book(job)


@pytest.fixture
def either_book(either_job: SmallJob) -> Book:
    return Book(either_job)


# What is done


def test_what_is_done_is_what_is_in_an_object(either_book: Book) -> None:
    book = either_book
    assert book.ledger.done_rows(1) == frozenset()
    writer = book.writer(1)
    book.answered(1, 2, writer=writer)
    book.failed(1, 0, writer=writer)
    book.answered(2, 1)
    assert book.ledger.done_rows(1) == {book.ids[1][2], book.ids[1][0]}
    assert book.ledger.done_rows(0) == frozenset()
    assert book.ledger.done_counts(book.plan).tolist() == [0, 2, 1]
    book.answered(1, 2, 3)  # another attempt, which did row 2 again
    assert book.ledger.done_rows(1) == {book.ids[1][row] for row in (0, 2, 3)}
    assert book.ledger.done_counts(book.plan).tolist() == [0, 3, 1]


def test_several_shards_are_looked_up_by_one_listing_of_each_kind(
    either_book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume of many shards would list a whole folder for each of them."""
    book = either_book
    book.answered(0, 1)
    book.answered(1, 2)
    book.failed(1, 0)
    book.answered(2, 1, 3)
    store = type(open_store(book.job.output))
    real, listed = store.list, list[str]()

    def noted(self: Any, prefix: str, after: str = "") -> Any:
        listed.append(prefix)
        return real(self, prefix, after)

    monkeypatch.setattr(store, "list", noted)
    for shards in ({0, 1, 2}, {1, 2}, {1}, {0, 2}):
        done_rows = book.ledger.look_up(shards)
        found = {shard: done_rows(shard) for shard in shards}
        assert sorted(listed) == ["errors/", "errors/r", "results/", "results/r"]
        listed.clear()
        assert found == {shard: book.ledger.done_rows(shard) for shard in shards}
        listed.clear()
    book.ledger.look_up(())
    assert listed == []


def test_a_disk_is_listed_once_where_no_one_else_writes_any_more(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book.answered(1, 2)
    store = type(open_store(book.job.output))
    real, listed = store.list, list[str]()

    def noted(self: Any, prefix: str, after: str = "") -> Any:
        listed.append(prefix)
        return real(self, prefix, after)

    monkeypatch.setattr(store, "list", noted)
    now = time.monotonic()
    assert [len(book.ledger.done_rows(0, quiet_since=now)) for _ in range(10)] == [0] * 10
    assert len(listed) == 4
    assert book.ledger.done_rows(1, quiet_since=now) == {book.ids[1][2]}
    book.answered(0, 1)  # as another run may do while it is not quiet
    assert book.ledger.done_rows(0) == {book.ids[0][1]}
    assert book.ledger.done_rows(0, quiet_since=time.monotonic() + 60) == {book.ids[0][1]}
    assert book.ledger.done_rows(0, quiet_since=time.monotonic()) == {book.ids[0][1]}


def test_the_sums_of_what_is_done_come_from_the_footers(either_book: Book) -> None:
    """Without a look at any row; an object that has none in its footer, or is gone meanwhile, is no obstacle."""
    book = either_book
    writer = book.writer(1)
    book.answered(1, 1, 2, writer=writer)
    book.failed(1, 0, writer=writer)
    book.answered(2, 1)
    names = book.ledger.object_names()
    expected = Totals()
    for name in names:
        table = pq.read_table(io.BytesIO(book.ledger.store.read(str(name))))
        expected.add(name.kind, table)
    assert (expected.answered, expected.failed) == (3, 1)
    reads: list[str] = []
    whole = book.ledger.store.read

    def noting(name: str) -> bytes:
        reads.append(name)
        return whole(name)

    ledger = Ledger(book.ledger.path)
    ledger.store.read = noting  # type: ignore[method-assign]
    assert ledger.totals(names) == expected
    assert reads == []
    bare, sink = pq.read_table(io.BytesIO(whole(str(names[0])))).replace_schema_metadata(None), io.BytesIO()
    pq.write_table(bare, sink)
    ledger.store.write(str(names[0]), sink.getvalue())
    assert ledger.totals(names) == expected
    assert reads == [str(names[0])]
    for wrong in (b"{", b"[1]", b"null"):
        odd = io.BytesIO()
        pq.write_table(bare.replace_schema_metadata({b"magbatch.totals": wrong}), odd)
        ledger.store.write(str(names[0]), odd.getvalue())
        assert ledger.totals(names) == expected, wrong
    ledger.store.delete(str(names[0]))
    assert ledger.totals(names).rows == expected.rows - names[0].rows


def test_finished_input_and_objects_of_one_attempt_are_never_read(book: Book) -> None:
    book.complete()
    for name in book.all_objects():
        book.job.put(f"output/{name}", b"nobody can read this")
    assert book.ledger.done_counts(book.plan).tolist() == [4, 4, 4]
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(f"{book.job.output}/{name}")


def test_two_attempts_that_overlap_are_counted_exactly(book: Book) -> None:
    book.answered(0, 0, 1, 2)
    book.answered(0, 1, 2)  # by their names alone the two would complete the shard
    book.failed(1, 0, 1)
    book.answered(1, 0, 1)
    assert book.ledger.done_counts(book.plan).tolist() == [3, 2, 0]


def test_two_names_of_one_attempt_that_overlap_are_not_believed(book: Book) -> None:
    """A PUT that failed for its writer but landed: what names add up to is more than there can be."""
    one = book.answered(0, 0, 1, 2)
    two = ObjectName(one.kind, one.shard, one.attempt, one.seq + 1, 2)
    table = pq.read_table(io.BytesIO(book.ledger.store.read(str(one)))).slice(1)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    book.ledger.store.write(str(two), sink.getvalue())
    assert book.ledger.done_counts(book.plan).tolist() == [3, 0, 0]


def test_an_object_that_cannot_be_read_is_an_error_of_the_output(book: Book) -> None:
    name = book.answered(0, 0)
    book.answered(0, 1)
    book.job.put(f"output/{name}", b"nobody can read this")
    with pytest.raises(OutputError, match=str(name)):
        book.ledger.done_counts(book.plan)


def test_objects_of_another_kind_are_no_rows(book: Book) -> None:
    book.job.put("output/results/notes.txt", b"")
    book.job.put("output/results/00000001-abc-0000.parquet", b"")
    assert book.ledger.done_counts(book.plan).tolist() == [0, 0, 0]


# Whose output it is


def test_a_place_without_a_job_says_so(job: SmallJob) -> None:
    job.ask(1)
    assert job.ledger.spec() is job.ledger.plan() is job.ledger.manifest() is None
    assert job.ledger.check_same(job.spec()) is False
    for question in (job.ledger.open_job, lambda: verify(job.ledger)):
        with pytest.raises(OutputError, match="no magbatch job here"):
            question()


def test_a_job_is_read_back_as_it_was_begun(either_book: Book) -> None:
    spec, plan = Ledger(either_book.job.output + "/").open_job()
    assert spec == either_book.spec
    assert list(plan.shards()) == list(either_book.plan.shards())
    assert either_book.ledger.check_same(spec) is True


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({"sampling": {"temperature": 0.1}}, ["sampling.temperature: 0.7 -> 0.1"]),
        ({"sampling": {"seed": 5}}, ["sampling.seed: None -> 5"]),
        ({"prompt": {"system": "Be brief."}}, ["prompt.system: 'none' -> 'Be brief.'"]),
        ({"input": {"carry": ["question"]}}, ["input.carry: [] -> ['question']"]),
        (
            {"limits": {"max_images": 3, "max_prompt_tokens": 9}},
            ["limits.max_images: 10 -> 3", "limits.max_prompt_tokens: 2000 -> 9"],
        ),
        ({"model": {"engine_args": {"max_model_len": 99}}}, ["model.engine_args.max_model_len: None -> 99"]),
    ],
)
def test_another_spec_is_refused_with_the_difference(book: Book, sections: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(SpecChangedError) as refused:
        book.ledger.check_same(book.job.spec(**sections))
    differing = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
    if "model" in sections:
        differing = [line for line in differing if "max_model_len" in line]
    assert differing == lines


def test_what_changes_no_answer_may_change(book: Book) -> None:
    sections: dict[str, Any] = {
        "name": "another-name",
        "replicas": {"min": 2, "max": 5, "cpus": 2.0},
        "output": {"commit_interval_s": 60, "commit_rows": 3},
        "limits": {"max_failed_rows": 9},
        "input": {"shard_rows": 7, "on_bad_file": "dead_letter", "fetch_timeout_s": 1},
        "model": {"engine_args": book.job.engine | {"max_num_seqs": 2}},
    }
    changed = book.job.spec(**sections)
    assert changed != book.spec
    assert book.ledger.check_same(changed) is True


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"parts": []}', b"null", b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_of_the_output(book: Book, content: bytes) -> None:
    book.complete()
    book.job.put("output/_magbatch/manifest.json", content)
    with pytest.raises(OutputError, match=r"_magbatch/manifest\.json is damaged"):
        book.ledger.manifest()
    (problem,) = verify(book.ledger).problems
    assert problem.startswith("_magbatch/manifest.json is damaged")


# The end


def test_a_complete_job_gets_its_manifest_last(either_book: Book) -> None:
    book = either_book
    book.complete()
    at_report: list[tuple[Totals, bool]] = []
    seen: list[tuple[str, int]] = []

    def report(totals: Totals) -> dict[str, bytes]:
        at_report.append((totals, book.ledger.manifest() is None))
        return whole_report(book.ledger, book.spec, book.plan, totals)

    totals, missing = finalise(
        book.ledger,
        book.spec,
        book.plan,
        lambda kind, table: seen.append((kind, len(table.column("id")))),
        report,
        lambda: None,
    )
    assert missing == []
    assert at_report == [(totals, True)]
    assert sorted(seen) == [(ERRORS, 1), (RESULTS, 2), (RESULTS, 2), (RESULTS, 3), (RESULTS, 4)]
    assert (totals.answered, totals.failed, totals.records) == (11, 1, 11)
    assert (totals.prompt_tokens, totals.cached_tokens) == (77, 33)
    assert (totals.reasoning_tokens, totals.answer_tokens) == (55, 22)
    assert totals.by_code == {"missing_value": 1}
    assert totals.by_status == {"complete": 11}
    assert book.outcome() == book.expect("iiii", "iiiI", "iiii")
    book.check_manifest()


def test_samples_count_their_prompt_once(job: SmallJob) -> None:
    book = Book(job, samples=3)
    book.complete()
    totals, missing = finalise(
        book.ledger,
        book.spec,
        book.plan,
        lambda kind, table: None,
        lambda totals: whole_report(book.ledger, book.spec, book.plan, totals),
        lambda: None,
    )
    assert missing == []
    assert (totals.answered, totals.records, totals.prompt_tokens) == (11, 33, 77)
    assert (totals.reasoning_tokens, totals.answer_tokens) == (165, 66)
    book.check_manifest()


def test_a_row_in_two_objects_is_kept_once(either_book: Book) -> None:
    """The rule: an answer before a dead letter, then the attempt that began first."""
    book = either_book
    book.answered(0, 0, 1, 2, by="a")
    superseded = [
        book.answered(0, 1, 2, 3, by="b"),  # partly repeated: a's rows stay a's
        book.failed(1, 0, 1, 2, by="c"),
    ]
    book.answered(1, 1, 2, 3, by="d")  # answers what was a dead letter
    superseded += [
        book.answered(1, 1, 2, 3, by="e"),  # wholly repeated
        book.failed(2, 0, 1, by="f"),
        book.failed(2, 1, 2, by="g"),
    ]
    book.answered(2, 0, by="h")
    book.answered(2, 3, by="i")
    assert book.finalise() == []
    assert book.outcome() == book.expect("aaab", "Cddd", "hFGi")
    book.check_manifest()
    moved = [
        item.name for kind in (RESULTS, ERRORS) for item in book.ledger.store.list(f"_magbatch/superseded/{kind}/")
    ]
    assert sorted(moved) == sorted(f"_magbatch/superseded/{name}" for name in superseded)  # moved, not deleted


def test_samples_of_a_row_stay_together(job: SmallJob) -> None:
    book = Book(job, rows=4, samples=3)
    book.answered(0, 0, 1, by="a")
    book.answered(0, 1, 2, 3, by="b")
    assert book.finalise() == []
    assert book.outcome() == book.expect("aabb")
    assert sorted((row["row_id"], row["sample"]) for row in job.records()) == [
        (row_id, sample) for row_id in book.ids[0] for sample in range(3)
    ]
    book.check_manifest()


def test_missing_rows_leave_everything_as_it_was(either_book: Book) -> None:
    book = either_book
    book.answered(0, 0, 1, 2)
    book.answered(0, 1, 2, 3)  # would be rewritten
    book.answered(1, 0, 1, 3)
    before = book.all_objects()
    reports: list[Totals] = []
    missing = finalise(book.ledger, book.spec, book.plan, lambda kind, table: None, reports.append, lambda: None)[1]
    assert missing == [book.ids[1][2], *book.ids[2]]
    assert reports == []
    assert book.ledger.manifest() is None
    assert book.all_objects() == before


def test_a_job_without_rows_leaves_datasets_that_can_be_opened(either_job: SmallJob) -> None:
    book = Book(either_job, rows=0)
    assert book.finalise() == []
    carry = pa.schema([("id", pa.string())])
    for kind, schema in ((RESULTS, results_schema(carry)), (ERRORS, errors_schema(carry))):
        (name,) = either_job.objects(kind)
        table = pq.read_table(io.BytesIO(book.ledger.store.read(name)))
        assert table.num_rows == 0
        assert table.schema.equals(schema, check_metadata=True)
    book.check_manifest()


@pytest.mark.parametrize("kind", [RESULTS, ERRORS])
def test_a_job_of_one_kind_of_rows_has_both_datasets(job: SmallJob, kind: str) -> None:
    book = Book(job, rows=2)
    (book.answered if kind == RESULTS else book.failed)(0, 0, 1)
    assert book.finalise() == []
    assert [len(job.objects(one)) for one in (RESULTS, ERRORS)] == [1, 1]
    assert len(job.records(kind)) == 2
    book.check_manifest()


# Interrupted ends


def finish(ledger: Ledger, spec: JobSpec, plan: Plan) -> None:
    """What `run` does with a job whose rows are all committed."""
    if ledger.manifest() is not None:
        tidy(ledger, lambda: None)
    else:
        assert ledger.done_counts(plan).tolist() == plan.shard_sizes.tolist()
        assert carry_out(ledger, spec, plan) == []


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_an_end_that_is_interrupted_anywhere_can_be_gone_on_with(job: SmallJob, tmp_path: Path, moment: str) -> None:
    book = Book(job)
    book.answered(0, 0, 1, 2, by="a")
    book.answered(0, 1, 2, 3, by="b")
    book.failed(1, 0, 1, 2, by="c")
    book.answered(1, 1, 3, by="d")
    book.answered(1, 1, 3, by="e")
    book.answered(2, 0, 1, 2, 3, by="f")
    job.put("output/_magbatch/tmp/left-by-a-killed-writer", b"half")
    pristine = tmp_path / "pristine"
    shutil.copytree(job.output, pristine)
    for at in range(100):
        shutil.rmtree(job.output)
        shutil.copytree(pristine, job.output)
        broken = Ledger(job.output)
        broken.store = Breaking(broken.store, at, moment)
        try:
            finish(broken, book.spec, book.plan)
        except StorageError:
            finish(Ledger(job.output), book.spec, book.plan)
            finish(Ledger(job.output), book.spec, book.plan)  # once more changes nothing
        else:
            break
        assert book.outcome() == book.expect("aaab", "CdCd", "ffff"), f"broken at change {at}"
        book.check_manifest()
        assert list(book.ledger.store.list("_magbatch/tmp/")) == []
    assert at > 7, "the end has more steps than that: this test has not seen them"


def test_a_start_that_is_interrupted_anywhere_can_be_made_again(job: SmallJob) -> None:
    job.ask(3)
    for at in range(6):
        for moment in ("before", "after"):
            shutil.rmtree(job.output, ignore_errors=True)
            broken = Ledger(job.output)
            broken.store = Breaking(broken.store, at, moment)
            with pytest.raises(StorageError):
                broken.begin(job.spec(), job.plan)
            ledger = Ledger(job.output)
            if ledger.check_same(job.spec()):  # a spec that is there has its plan
                assert ledger.open_job()[1].rows == 3
            else:
                ledger.begin(job.spec(), job.plan)
            assert ledger.open_job()[0] == job.spec()


def test_what_a_zombie_commits_after_the_end_is_moved_away(either_book: Book) -> None:
    book = either_book
    zombie = book.writer(1)
    book.complete()
    assert book.finalise() == []
    late = book.answered(1, 0, 3, writer=zombie)
    assert verify(book.ledger).problems != []
    tidy(book.ledger, lambda: None)
    assert str(late) not in book.all_objects()
    book.check_manifest()


@pytest.mark.parametrize("seed", range(30))
def test_whatever_attempts_commit_the_end_has_every_row_once(job: SmallJob, seed: int) -> None:
    """Any number of attempts, each finishing any part of its shard, in any order, as answers or dead letters."""
    draw = random.Random(seed)
    book = Book(job, rows=draw.choice([1, 5, 11]), shard_rows=draw.choice([1, 4, 20]))
    expected: dict[str, str] = {}
    for number in range(draw.randint(1, 12)):
        shard = draw.randrange(len(book.ids))
        writer = book.writer(shard)
        done: set[int] = set()
        for _ in range(draw.randint(1, 3)):  # an attempt finishes a row once, whatever others do
            open_rows = [row for row in range(len(book.ids[shard])) if row not in done]
            rows = draw.sample(open_rows, draw.randint(0, len(open_rows)))
            if not rows:
                continue
            done.update(rows)
            by = f"attempt {number:02d}"
            if draw.random() < 0.6:
                book.answered(shard, *rows, by=by, writer=writer)
            else:
                book.failed(shard, *rows, by=by, writer=writer)
                by = f"failed: {by}"
            for row in rows:
                row_id = book.ids[shard][row]
                held = expected.get(row_id, by)
                better = held.startswith("failed") and not by.startswith("failed")
                expected[row_id] = by if better else held
    everything = [row_id for ids in book.ids for row_id in ids]
    counts = [sum(row_id in expected for row_id in ids) for ids in book.ids]
    assert book.ledger.done_counts(book.plan).tolist() == counts
    missing = [row_id for row_id in everything if row_id not in expected]
    before = book.all_objects()
    assert book.finalise() == missing
    if missing:
        assert book.all_objects() == before
        for shard, ids in enumerate(book.ids):
            rows = [row for row, row_id in enumerate(ids) if row_id in missing]
            if rows:
                book.answered(shard, *rows, by="the last")
        expected |= dict.fromkeys(missing, "the last")
        assert book.finalise() == []
    assert book.outcome() == expected
    book.check_manifest()


# The proof finds what is wrong


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
    return [f"{name}: in the manifest, but not there", "gap: 2 planned rows of shard 0"]


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
    return [f"{name}: its checksum is not the manifest's"]


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
    return [f"{other}: not in the manifest", f"{name}: in the manifest, but not there"]


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
    return ["_magbatch/plan.parquet: its checksum is not the manifest's"]


def manifest_with_more(book: Book) -> list[str]:
    parts = stored(book.ledger).objects
    more = ObjectName.of("results/00000000-abc-0000.n1.parquet")
    rewrite_manifest(book.ledger, objects=(*parts, replace(parts[0], name=more)))
    return [f"{more}: in the manifest, but not there"]


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
    assert problems[0].endswith("its checksum is not the manifest's")
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
