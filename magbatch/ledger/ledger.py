"""What is done, from the objects alone.

The data objects are the checkpoint: a row is done exactly when its row id is in a visible object
below `results/` or `errors/`. There is no second file that could disagree. The manifest, written
last, names the objects that count and makes the job complete.
"""

import io
import math
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from heapq import merge
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.answers import made_columns
from magbatch.answers.grading import Grading
from magbatch.errors import OutputError, SpecChangedError, StorageError
from magbatch.ledger.audit import Audit, audit_unit, units
from magbatch.ledger.layout import MANIFEST, PAGE, PLAN, RECORD, REPORT, SPEC, SUPERSEDED
from magbatch.ledger.manifest import Manifest
from magbatch.ledger.objects import damaged, read_columns, read_object, read_totals, row_ids_of
from magbatch.ledger.staging import settle, staged
from magbatch.plan.plan import PLAN_ID_KEY, Plan
from magbatch.schema import ERRORS, RESULTS, SCHEMA_VERSION, ObjectName, errors_schema, results_schema
from magbatch.spec import JobSpec, differences, is_remote, parse
from magbatch.storage import Store, open_store
from magbatch.storage.columns import carried_fields
from magbatch.storage.patience import PatientStore
from magbatch.totals import Totals

PLAN_FOOTER_BYTES = 1 << 16  # of a stored plan that are read first
FOOTER_READERS = 32  # footers read at once: they are small
READERS = 8  # objects read at once by an audit: object storage answers in tens of ms
AUDIT_ROWS = 8192  # held at once, where no merged object has more: what bounds the memory of an audit


class Ledger:
    """The output of one job.

    Args:
        path: Local directory or s3:// prefix.
        patience_s: Seconds that its storage may refuse, or be away, before that is an error.
        on_wait: Is called with each refusal that is waited out.
        plan_id: Id of the job's plan, where it is known; else it is read.

    Attributes:
        refusals: How many were.
    """

    def __init__(
        self,
        path: str,
        patience_s: float = 0.0,
        on_wait: Callable[[StorageError], None] | None = None,
        plan_id: str | None = None,
    ) -> None:
        self.path = path.rstrip("/")
        self.refusals = 0
        self._filled, self._listed_at = set[int](), -math.inf

        def wait(error: StorageError) -> None:
            self.refusals += 1
            if on_wait is not None:
                on_wait(error)

        if plan_id is not None:
            self.plan_id = plan_id
        store = open_store(self.path)
        self.store: Store = PatientStore(store, patience_s, wait) if patience_s else store

    # The job's own files

    def load(self, name: str) -> bytes | None:
        """One of the job's own files; None where it is not there."""
        try:
            return self.store.read(name)
        except FileNotFoundError:
            return None

    def spec(self) -> JobSpec | None:
        """The spec that the output belongs to; None where there is no job yet."""
        data = self.load(SPEC)
        return None if data is None else parse(data.decode(errors="replace"), origin=f"{self.path}/{SPEC}")

    def plan(self) -> Plan | None:
        """The frozen plan; None where there is no job yet."""
        data = self.load(PLAN)
        plan = None if data is None else Plan.from_bytes(data)
        self.plan_id = None if plan is None else plan.id
        return plan

    @cached_property
    def plan_id(self) -> str | None:
        """Id of the frozen plan, whose objects alone count here; None where there is none yet, or of older versions."""
        return read_plan_id(self.store)

    def manifest(self) -> Manifest | None:
        """The manifest; None while the job is not complete.

        Raises:
            OutputError: It is damaged, or was changed after it was written.
        """
        data = self.load(MANIFEST)
        return None if data is None else Manifest.from_json(data, f"{self.path}/{MANIFEST}")

    def open_job(self) -> tuple[JobSpec, Plan]:
        """The job that is here.

        Raises:
            OutputError: There is none.
        """
        try:
            spec, plan = self.spec(), self.plan()
        except StorageError as error:
            if self.store.patience_s or not error.wrong_at_first:
                raise  # a job may be under way: its storage is away
            raise OutputError(str(error)) from error
        if spec is None or plan is None:
            raise self.no_job()
        return spec, plan

    def no_job(self) -> OutputError:
        """The error of a place without a job."""
        return OutputError(f"{self.path}: no magbatch job here (no {SPEC}); give the output.path of a job that was run")

    def complete_job(self) -> tuple[JobSpec, Plan, Manifest]:
        """The job that is here, and its manifest.

        Raises:
            OutputError: There is none, it is not complete, its spec or its plan was changed, or its objects have
                another version's columns.
        """
        (spec, plan), manifest = self.open_job(), self.manifest()
        if manifest is None:
            first = "run its spec" if "://" in self.path else f"magbatch run {shlex.quote(f'{self.path}/{SPEC}')}"
            raise OutputError(f"{self.path}: the job is not complete; first: {first}")
        if manifest.schema_version != SCHEMA_VERSION:
            raise OutputError(f"{self.path}: its objects have the columns of another version of magbatch")
        of_plan = self.load(PLAN) or b""
        if not manifest.vouches_for(SPEC, self.load(SPEC)):
            raise damaged(self.store, f"{SPEC}: its checksum is not the manifest's")
        # Any version of a manifest has the plan's checksum.
        if sha256(of_plan).hexdigest() != manifest.plan_sha256 or not manifest.vouches_for(PLAN, of_plan):
            raise damaged(self.store, f"{PLAN}: its checksum is not the manifest's")
        return spec, plan, manifest

    def begin(self, spec: JobSpec, plan: Plan) -> Plan:
        """Freeze a new job: the plan first, so that a spec that is there always has its plan.

        A spec that has answered nothing goes before that: it must not stand with the plan of this one. What its runs
        have told of themselves goes too: this job has neither their costs nor their end.

        Returns:
            The plan with its id.
        """
        plan = plan.begun()
        for name in (SPEC, RECORD, REPORT, PAGE):
            self.store.delete(name)
        self.store.write(PLAN, plan.to_bytes())
        self.store.write(SPEC, spec.to_yaml().encode())
        self.plan_id = plan.id
        return plan

    def has_objects(self) -> bool:
        """Whether anything but objects of another plan lies in the folders that users glob, or the job is complete."""
        plan_id = read_plan_id(self.store)  # now: another run may have begun another job here
        names = (ObjectName.parse(item.name) for kind in (RESULTS, ERRORS) for item in self.store.list(f"{kind}/"))
        return any(name is None or not name.is_foreign(plan_id) for name in names) or self.load(MANIFEST) is not None

    def check_same(self, spec: JobSpec) -> bool:
        """Whether a job is here already, and it is this one.

        Raises:
            SpecChangedError: Another one is, with the difference.
        """
        old = self.spec()
        if old is None:
            return False
        changed = differences(old, spec)
        if changed:
            listed = "\n".join(f"  {line}" for line in changed)
            raise SpecChangedError(
                f"{self.path} holds answers to another spec; what differs:\n{listed}\n"
                "Set output.path to a new place, or run the spec as it was to go on."
            )
        return True

    # What is done

    def objects(self, kind: str, shard: int | None = None) -> Iterator[ObjectName]:
        """The job's objects of a kind, in the order of their first shards; of a shard: that may hold rows of it."""
        return (part for part in self._every(kind, shard) if not self._is_foreign(part))

    def _is_foreign(self, part: ObjectName) -> bool:
        return part.is_foreign(self.plan_id)

    def _every(self, kind: str, shard: int | None = None) -> Iterator[ObjectName]:
        """As `parts`, with objects of other plans."""
        merged = sorted(self._listed(ObjectName.prefix(kind)), key=attrgetter("shard"))
        if shard is not None:
            yield from self._listed(ObjectName.prefix(kind, shard))
            yield from (part for part in merged if shard in part.shards)
            return
        single = (part for part in self._listed(f"{kind}/") if part.span == 1)
        yield from merge(single, merged, key=attrgetter("shard"))

    def _listed(self, prefix: str, after: str = "") -> Iterator[ObjectName]:
        parts = (ObjectName.parse(item.name) for item in self.store.list(prefix, after))
        return (part for part in parts if part is not None)

    def _units(
        self, plan: Plan, only: Collection[ObjectName] | None = None
    ) -> Iterator[tuple[range, list[ObjectName]]]:
        both = merge(*(self._every(kind) for kind in (RESULTS, ERRORS)), key=attrgetter("shard"))
        return units((part for part in both if only is None or part in only), plan.num_shards)

    def done_rows(self, shard: int, quiet_since: float = math.inf) -> frozenset[str]:
        """The ids of a shard's rows that are in a visible object.

        Args:
            shard: Its number.
            quiet_since: When the last object of the shard can have come, by the monotonic clock (seconds): one listing
                that was made later tells of all such shards which of them have no object at all.

        Raises:
            OutputError: An object is damaged.
        """
        if not self._may_have_rows(shard, quiet_since):
            return frozenset()
        return self._rows_in(shard, [part for kind in (RESULTS, ERRORS) for part in self.objects(kind, shard)])

    def look_up(self, shards: Collection[int]) -> Callable[[int], frozenset[str]]:
        """As `done_rows`, for shards that lie close together: what lies between the first and the last is listed once.

        Returns:
            The ids of one of these shards' rows; its objects are read then.
        """
        found: dict[int, list[ObjectName]] = {shard: [] for shard in shards}
        first, last = min(found, default=0), max(found, default=-1)
        for kind in (RESULTS, ERRORS) if found else ():
            for part in self._listed(ObjectName.prefix(kind)):
                if self._is_foreign(part):
                    continue
                for shard in range(max(first, part.shards.start), min(last + 1, part.shards.stop)):
                    found.get(shard, []).append(part)
            for part in self._listed(f"{kind}/", ObjectName.prefix(kind, first)):
                if part.span > 1 or part.shard > last:  # merged ones come after all others
                    break
                if not self._is_foreign(part):
                    found.get(part.shard, []).append(part)
        return lambda shard: self._rows_in(shard, found[shard])

    def _may_have_rows(self, shard: int, quiet_since: float) -> bool:
        """Whether a shard has objects, by a listing of a whole disk, which costs what a listing of one shard does."""
        now = time.monotonic()
        if is_remote(self.path) or now <= quiet_since:
            return True
        if self._listed_at <= quiet_since:
            self._filled = {shard for part in self.object_names() for shard in part.shards}
            self._listed_at = now
        return shard in self._filled

    def _rows_in(self, shard: int, parts: list[ObjectName]) -> frozenset[str]:
        done = frozenset(row_id for part in parts for row_id in self._row_ids(part))
        if all(part.span == 1 for part in parts):
            return done
        plan = self.plan()  # merged objects hold rows of other shards too
        return done & frozenset(plan.shard(shard).row_ids()) if plan is not None else done

    def _row_ids(self, part: ObjectName) -> list[str]:
        try:
            return row_ids_of(read_columns(self.store, part, ["row_id"]))
        except FileNotFoundError:  # moved since it was listed: its rows are open
            return []

    def done_counts(self, plan: Plan) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """How many rows of each shard are done: from one listing of names.

        Names are exact while one attempt alone has written for a shard. Where two did, a row may
        count twice, so those few shards are read.
        """
        counts, sizes = np.zeros(plan.num_shards, dtype=np.int64), plan.shard_sizes
        unsure: list[tuple[range, list[ObjectName]]] = []
        for shards, there in self._units(plan):
            if shards.start >= plan.num_shards:
                break
            parts = [part for part in there if not part.is_foreign(plan.id)]
            rows, planned = sum(part.rows for part in parts), int(sizes[shards.start : shards.stop].sum())
            one_attempt = len({part.attempt for part in parts}) <= 1
            if one_attempt and rows == planned:
                counts[shards.start : shards.stop] = sizes[shards.start : shards.stop]
            elif one_attempt and rows < planned and len(shards) == 1:
                counts[shards.start] = rows
            else:
                unsure.append((shards, parts))
        with ThreadPoolExecutor(READERS) as pool:
            names = [part for _, parts in unsure for part in parts]
            found = dict(zip(names, pool.map(self._row_ids, names), strict=True))
        for shards, parts in unsure:
            done = {row_id for part in parts for row_id in found[part]}
            for shard in range(shards.start, min(shards.stop, plan.num_shards)):
                counts[shard] = sum(row_id in done for row_id in plan.shard(shard).row_ids())
        return counts

    def distinct_rows(self, kind: str) -> int:
        """Rows of a kind, each once: their ids are read."""
        with ThreadPoolExecutor(READERS) as pool:
            return len({row_id for found in pool.map(self._row_ids, self.objects(kind)) for row_id in found})

    def object_names(self) -> list[ObjectName]:
        """Every committed object that is visible now, also of other plans."""
        return [part for kind in (RESULTS, ERRORS) for part in self._every(kind)]

    def totals(self, names: list[ObjectName]) -> Totals:
        """The sums over some objects, from their footers; a row that is in two of them counts twice."""

        def one(name: ObjectName) -> Totals:
            try:
                return read_totals(self.store, name)
            except (FileNotFoundError, OutputError):  # moved since it was listed; or damaged, as the end will say
                return Totals()

        sums = Totals()
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            for totals in pool.map(one, names):
                sums = sums.plus(totals)
        return sums

    # The proof

    def audit(
        self,
        plan: Plan,
        more: dict[str, list[str]],
        checksums: Mapping[ObjectName, str] | None = None,
        only: Collection[ObjectName] | None = None,
    ) -> Iterator[Audit]:
        """Hold every object against the plan, unit by unit; the objects are read whole.

        Args:
            plan: The job's plan.
            more: Columns to hand on in each part's table, by kind, beside those that totals need.
            checksums: What a manifest says of objects: one that is another is not looked into.
            only: Objects that are looked at; all where this is None.
        """
        known = checksums or {}

        def found(window: list[tuple[range, list[ObjectName]]]) -> Iterator[Audit]:
            names = [name for _, parts in window for name in parts if not name.is_foreign(plan.id)]
            one_by_one = any(name.span > 1 for name in names)  # a merged object is large
            read = map if one_by_one else pool.map
            at_hand = dict(
                zip(names, read(lambda name: read_object(self.store, name, more, known.get(name)), names), strict=True)
            )
            for shards, parts in window:
                read_ones = [(name, at_hand[name]) for name in parts if name in at_hand]
                foreign = [name for name in parts if name not in at_hand]
                yield audit_unit(shards, planned_rows(plan, shards), read_ones, foreign)

        with ThreadPoolExecutor(READERS) as pool:
            window, rows, sizes = list[tuple[range, list[ObjectName]]](), 0, plan.shard_sizes
            for shards, parts in self._units(plan, only):
                window.append((shards, parts))
                rows += max(int(sizes[shards.start : shards.stop].sum()), sum(part.rows for part in parts))
                if rows >= AUDIT_ROWS:
                    yield from found(window)
                    window, rows = [], 0
            yield from found(window)

    # The end

    def strays(self) -> tuple[list[ObjectName], list[str]]:
        """What a complete job's objects and its manifest do not have in common.

        Returns:
            Objects that it does not name, which an interrupted end left; and names of which there is no object.
        """
        parts = self.object_names()
        manifest = self.manifest()  # after the listing: what is not in it now will be in no later one either
        if manifest is None:
            return [], []
        named, there = {entry.name for entry in manifest.objects}, set(parts)
        return _unnamed(parts, manifest), sorted(str(name) for name in named - there)

    def tidy(self, confirm: Callable[[], None]) -> None:
        """After the manifest: what it does not name leaves the folders that users glob.

        Args:
            confirm: Raises where another command works on the output: its new objects are in no manifest yet.
        """
        parts, beside = self.object_names(), staged(self.store)
        manifest = self.manifest()  # after the listings, as in `strays`
        confirm()
        if manifest is not None:
            settle(self.store, manifest, beside)
            for part in _unnamed(parts, manifest):
                self.supersede(part)
        for draft in list(self.store.list("_magbatch/tmp/")):
            self.store.delete(draft.name)

    def supersede(self, name: ObjectName) -> None:
        """Move an object out of the folders that users glob."""
        self.store.move(str(name), f"{SUPERSEDED}/{name}")


def _unnamed(parts: list[ObjectName], manifest: Manifest) -> list[ObjectName]:
    named = {entry.name for entry in manifest.objects}
    return [part for part in parts if part not in named]


def grading_of(spec: JobSpec, plan: Plan) -> Grading | None:
    """What of a job's results is held against what; None if the input knows no right answers."""
    return Grading.of(spec, plan.output_name(spec.input.columns.expected))


def narrow_columns(spec: JobSpec, plan: Plan) -> dict[str, list[str]]:
    """By kind: the columns that totals and summaries of a job need, beside those of every job."""
    carry, grading = carried_fields(spec, plan.columns).names, grading_of(spec, plan)
    return {RESULTS: [*carry, grading.given] if grading is not None else carry, ERRORS: carry}


def schema_of(spec: JobSpec, plan: Plan, kind: str) -> pa.Schema:
    """The columns of a job's objects of a kind."""
    carry = carried_fields(spec, plan.columns)
    if kind == ERRORS:
        return errors_schema(carry, with_answer=spec.answer.may_refuse)
    return results_schema(carry, made_columns(spec))


def planned_rows(plan: Plan, shards: range) -> dict[str, int]:
    """The rows of some shards, in the order of the plan, and the shard of each."""
    within = range(shards.start, min(shards.stop, plan.num_shards))
    return {row_id: shard for shard in within for row_id in plan.shard(shard).row_ids()}


def read_plan_id(store: Store) -> str | None:
    """Id of the stored plan, by its footer alone where that is short; None where there is none, or it is damaged."""
    with suppress(pa.ArrowException, ValueError, OSError):
        try:
            found = pq.read_metadata(io.BytesIO(store.read_end(PLAN, PLAN_FOOTER_BYTES))).metadata
        except (pa.ArrowException, ValueError):  # the footer is longer than what was read of it
            found = pq.read_metadata(io.BytesIO(store.read(PLAN))).metadata
        return found[PLAN_ID_KEY.encode()].decode() if PLAN_ID_KEY.encode() in (found or {}) else None
    return None
