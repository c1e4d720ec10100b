"""Objects written by hand: what any number of attempts may leave, without an engine."""

import hashlib
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.errors import ErrorCode, Step, StorageError
from magbatch.jobs.choice import Choice
from magbatch.jobs.retry import RetryOutcome, merge, prepare, sweep
from magbatch.ledger.finalise import finalise
from magbatch.ledger.layout import MANIFEST, PAGE, REPORT
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Entry, Manifest, StoredFile
from magbatch.ledger.verify import Verification, verify
from magbatch.pipeline.write import ObjectWriter
from magbatch.plan.plan import Plan
from magbatch.report.report import Report, Run
from magbatch.report.stored import put_right
from magbatch.rows import Answer, DeadLetter, FinishedRow, ReasoningStatus
from magbatch.schema import ERRORS, RESULTS, ObjectName
from magbatch.spec import JobSpec
from magbatch.storage import ObjectInfo, Store
from magbatch.totals import Totals
from support.small_job import SmallJob

NOW = datetime(2026, 11, 6, 12, tzinfo=UTC)


class Hand:
    """Writes the objects of a frozen job.

    Args:
        ledger: Ledger of the job.
        plan: Plan of the job.
        samples: Number of records of an answered row.
    """

    def __init__(self, ledger: Ledger, plan: Plan, samples: int = 1) -> None:
        self.ledger, self.plan, self.samples = ledger, plan, samples
        self.ids = [shard.row_ids() for shard in plan.shards()]
        self._clock_ms = 0

    def writer(self, shard: int) -> ObjectWriter:
        """Begin a new attempt at a shard."""
        while time.time_ns() // 1_000_000 == self._clock_ms:  # attempts sort by the millisecond
            time.sleep(0.0002)
        self._clock_ms = time.time_ns() // 1_000_000
        names = self.plan.columns.names
        carried = pa.table({name: [f"user-{row_id}" for row_id in self.ids[shard]] for name in names if name == "id"})
        positions = {row_id: position for position, row_id in enumerate(self.ids[shard])}
        return ObjectWriter(self.ledger.store, carried, positions, "tiny", shard, plan_id=self.plan.id)

    def answered(
        self, shard: int, *rows: int, by: str = "i", writer: ObjectWriter | None = None, truncated: bool = False
    ) -> ObjectName:
        """Commit answers for rows of a shard; `by` stands in the answer, or in the thinking that was truncated."""
        answer = Answer("because", ReasoningStatus.COMPLETE, by, "stop", 5, 2)
        if truncated:
            answer = Answer(by, ReasoningStatus.TRUNCATED, None, "length", 9, 0)
        finished = [FinishedRow(self.ids[shard][row], 7, 3, 0.5, [answer] * self.samples, NOW) for row in rows]
        return (writer or self.writer(shard)).results(finished).name

    def failed(
        self, shard: int, *rows: int, by: str = "i", writer: ObjectWriter | None = None,
        code: ErrorCode = ErrorCode.MISSING_VALUE,
    ) -> ObjectName:  # fmt: skip
        """Commit dead letters for rows of a shard; `by` stands in the message."""
        letters = [DeadLetter(self.ids[shard][row], Step.RENDER, code, by) for row in rows]
        return (writer or self.writer(shard)).errors(letters).name

    def answer_all(self, by: str = "again", **options: Any) -> None:
        """Every row, by one attempt at each shard."""
        for shard, ids in enumerate(self.ids):
            self.answered(shard, *range(len(ids)), by=by, **options)


class Book(Hand):
    """A frozen job of 12 rows in 3 shards, whose objects tests write by hand.

    Args:
        job: Files of the job.
    """

    def __init__(self, job: SmallJob, rows: int = 12, shard_rows: int = 4, samples: int = 1, **columns: Any) -> None:
        job.ask(rows, **columns)
        job.set("input", shard_rows=shard_rows)
        job.set("sampling", n=samples)
        self.job, self.spec = job, job.spec()
        job.plan = job.ledger.begin(self.spec, job.plan)
        super().__init__(job.ledger, job.plan, samples)

    def complete(self) -> None:
        """Every row once: shard 0 in two objects of one attempt, shard 1 with a dead letter, shard 2 whole."""
        writer = self.writer(0)
        self.answered(0, 2, 0, writer=writer)
        self.answered(0, 1, 3, writer=writer)
        writer = self.writer(1)
        self.answered(1, 0, 1, 2, writer=writer)
        self.failed(1, 3, writer=writer)
        self.answered(2, 0, 1, 2, 3)

    def finalise(self) -> list[str]:
        return carry_out(self.ledger, self.spec, self.plan)

    def outcome(self) -> dict[str, str]:
        """Outcome of each row that a plain glob finds; see `outcome`."""
        return outcome(self.ledger.store, self.all_objects())

    def expect(self, *shards: str) -> dict[str, str]:
        """An outcome from a letter for each row; a capital is a dead letter."""
        names = {letter: letter if letter.islower() else f"failed: {letter.lower()}" for letter in "".join(shards)}
        return {
            row_id: names[letter]
            for ids, letters in zip(self.ids, shards, strict=True)
            for row_id, letter in zip(ids, letters, strict=True)
        }

    def all_objects(self) -> list[str]:
        return [item for kind in (RESULTS, ERRORS) for item in self.job.objects(kind)]

    def check_manifest(self) -> None:
        """The manifest names exactly the objects of a plain glob, with their checksums and counts; verify agrees."""
        manifest = self.ledger.manifest()
        assert manifest is not None
        assert sorted(str(entry.name) for entry in manifest.objects) == sorted(self.all_objects())
        for entry in manifest.objects:
            data = self.ledger.store.read(str(entry.name))
            table = pq.read_table(io.BytesIO(data))
            rows = len(set(table.column("row_id").to_pylist()))
            assert entry == Entry(entry.name, rows, table.num_rows, len(data), hashlib.sha256(data).hexdigest())
        outcome = self.outcome()
        failed = sum(text.startswith("failed: ") for text in outcome.values())
        assert verify(self.ledger) == Verification(
            planned=self.plan.rows,
            answered=len(outcome) - failed,
            failed=failed,
            open=0,
            objects=len(manifest.objects),
            complete=True,
            problems=(),
        )
        assert (manifest.totals.answered, manifest.totals.failed) == (len(outcome) - failed, failed)
        assert len(outcome) == self.plan.rows
        if manifest.file(REPORT) is not None:
            sums = json.loads(self.ledger.store.read(REPORT))["totals"]
            assert sums.items() <= json.loads(manifest.to_json()).items()


def outcome(store: Store, objects: list[str]) -> dict[str, str]:
    """Outcome of each row in some objects: its answer, `truncated: …` or `failed: …`. A row may not come twice."""
    found: dict[str, str] = {}
    for name in objects:
        for row in pq.read_table(io.BytesIO(store.read(name))).to_pylist():
            if row.get("sample", 0) == 0:
                assert row["row_id"] not in found, f"{row['row_id']} is there twice"
                text = f"failed: {row['message']}" if name.startswith(ERRORS) else row["answer"]
                found[row["row_id"]] = f"truncated: {row['reasoning']}" if text is None else text
    return found


def stored(ledger: Ledger) -> Manifest:
    """The manifest of a complete job."""
    manifest = ledger.manifest()
    assert manifest is not None
    return manifest


def rewrite_manifest(ledger: Ledger, **changes: Any) -> None:
    """Put a manifest that says something else in the place of a job's, with a checksum that fits."""
    ledger.store.write(MANIFEST, replace(stored(ledger), **changes).to_json())


def rewrite_report(ledger: Ledger, **changes: Any) -> None:
    """Put a report that says something else in the place of a job's, with a checksum that fits."""
    data = json.dumps(json.loads(ledger.store.read(REPORT)) | changes).encode()
    files = (file for file in stored(ledger).files if file.name != REPORT)
    ledger.store.write(REPORT, data)
    rewrite_manifest(ledger, files=(*files, StoredFile.of(REPORT, data)))


def carry_out(ledger: Ledger, spec: JobSpec, plan: Plan) -> list[str]:
    """Finalise, and leave a report as a run does; returns the rows that are missing."""

    def report(totals: Totals) -> dict[str, bytes]:
        return whole_report(ledger, spec, plan, totals)

    return finalise(ledger, spec, plan, lambda kind, table: None, report, lambda: None)[1]


def whole_report(ledger: Ledger, spec: JobSpec, plan: Plan, totals: Totals) -> dict[str, bytes]:
    """Report files as a run leaves them; the page differs each time."""
    found = Report(spec.name, ledger.path, plan.rows, totals, None, Run())
    return {REPORT: json.dumps(found.to_dict()).encode(), PAGE: uuid.uuid4().bytes}


def ask_again(
    ledger: Ledger, answer: Callable[[Hand], None], choice: Choice | None = None, overrides: tuple[str, ...] = ()
) -> RetryOutcome:
    """Do what `retry` does, with rows answered by hand instead of by a fleet."""
    put_right(ledger, lambda: None)
    sweep(ledger)
    found = prepare(ledger, choice or Choice(), list(overrides))
    if isinstance(found, RetryOutcome):
        return found
    place = found.output()
    if place.spec() is None:
        found = replace(found, plan=place.begin(found.spec, found.plan))
    if place.manifest() is None:
        if not place.done_counts(found.plan).sum():
            answer(Hand(place, found.plan, found.spec.sampling.n))
        assert carry_out(place, found.spec, found.plan) == []
    return merge(found, lambda: None)


class Breaking:
    """A store that breaks at one of its changes, as a kill -9 of its user does.

    Args:
        store: The real one.
        at: The change that breaks, counted from 0.
        moment: `before` it took effect, `after`, or `half`-way: S3 moves by a copy and a deletion.
    """

    def __init__(self, store: Store, at: int, moment: str) -> None:
        self.store, self.root, self.at, self.moment = store, store.root, at, moment
        self.changes = 0
        self.taken: list[bool] = []

    def _change(self, change: Callable[..., None], half: Callable[..., None] | None, *args: Any) -> None:
        number, self.changes = self.changes, self.changes + 1
        if number == self.at and self.moment == "half" and half is not None:
            half(*args)
        elif number < self.at or (number == self.at and self.moment == "after"):
            change(*args)
        if number >= self.at:
            raise StorageError("the store broke")

    def _copy(self, name: str, target: str) -> None:
        self.store.write(target, self.store.read(name))

    def read(self, name: str) -> bytes:
        return self.store.read(name)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        return self.store.list(prefix, after)

    def write(self, name: str, data: bytes) -> None:
        self._change(self.store.write, None, name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._change(lambda: self.taken.append(self.store.create(name, data)), None)
        return self.taken[-1]

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        self._change(lambda: self.taken.append(self.store.replace(name, data, old)), None)
        return self.taken[-1]

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        return self.store.keeps_conditions(name, data)

    def move(self, name: str, target: str) -> None:
        self._change(self.store.move, self._copy, name, target)

    def delete(self, name: str) -> None:
        self._change(self.store.delete, None, name)


def complete_with_failures(book: Book) -> None:
    """Three shards of 4: answers `i`, dead letters of two codes, and two truncated rows."""
    writer = book.writer(0)
    book.answered(0, 0, 1, writer=writer)
    book.failed(0, 2, writer=writer)
    book.failed(0, 3, writer=writer, code=ErrorCode.ROW_TIMEOUT)
    writer = book.writer(1)
    book.answered(1, 0, writer=writer)
    book.answered(1, 1, 2, writer=writer, by="t", truncated=True)
    book.answered(1, 3, writer=writer)
    book.failed(2, 0, 1, 2, 3, code=ErrorCode.ROW_TIMEOUT)
    assert book.finalise() == []
