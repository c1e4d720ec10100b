"""What is done, from the objects alone.

The data objects are the checkpoint: a row is done exactly when its row id is in a visible object
below `results/` or `errors/`. There is no second file that could disagree. The manifest, written
last, names the objects that count and makes the job complete.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.errors import OutputError, SpecChangedError, StorageError
from magbatch.job.audit import Part, ShardAudit, Totals, audit_shard, read_part, row_ids_of
from magbatch.job.plan import Plan
from magbatch.rows import ERRORS, RESULTS, SCHEMA_VERSION, PartName, errors_schema, new_attempt, results_schema
from magbatch.spec import JobSpec, carried_columns, differences, parse
from magbatch.storage import PatientStore, Store, open_store

PLAN = "_magbatch/plan.parquet"
SPEC = "_magbatch/spec.yaml"
REPORT = "_magbatch/report.json"
MANIFEST = "_magbatch/manifest.json"
SUPERSEDED = "_magbatch/superseded"
READERS = 8  # objects read at once by an audit: object storage answers in tens of ms
AUDIT_WINDOW = 64  # shards held at once: what bounds the memory of an audit


class Ledger:
    """The output of one job.

    Args:
        path: Local directory or s3:// prefix.
        patience_s: Seconds that its storage may refuse, or be away, before that is an error.
        on_wait: Is called with each refusal that is waited out.
    """

    def __init__(
        self, path: str, patience_s: float = 0.0, on_wait: Callable[[StorageError], None] | None = None
    ) -> None:
        self.path = path.rstrip("/")
        store = open_store(self.path)
        self.store: Store = PatientStore(store, patience_s, on_wait) if patience_s else store

    # The job's own files

    def _load(self, name: str) -> bytes | None:
        try:
            return self.store.read(name)
        except FileNotFoundError:
            return None

    def spec(self) -> JobSpec | None:
        """The spec that the output belongs to; None where there is no job yet."""
        data = self._load(SPEC)
        return None if data is None else parse(data.decode(errors="replace"), origin=f"{self.path}/{SPEC}")

    def plan(self) -> Plan | None:
        """The frozen plan; None where there is no job yet."""
        data = self._load(PLAN)
        return None if data is None else Plan.from_bytes(data)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None while the job is not complete."""
        data = self._load(MANIFEST)
        if data is None:
            return None
        try:
            manifest: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise OutputError(f"{self.path}/{MANIFEST} is damaged: {error}") from error
        if not isinstance(manifest, dict) or not {"parts", "plan_sha256", "answered", "failed"} <= manifest.keys():
            raise OutputError(f"{self.path}/{MANIFEST} is not a manifest of magbatch")
        return manifest

    def open_job(self) -> tuple[JobSpec, Plan]:
        """The job that is here.

        Raises:
            OutputError: There is none.
        """
        spec, plan = self.spec(), self.plan()
        if spec is None or plan is None:
            raise OutputError(
                f"{self.path}: no magbatch job here (no {SPEC}); give the output.path of a job that was run"
            )
        return spec, plan

    def begin(self, spec: JobSpec, plan: Plan) -> None:
        """Freeze a new job: the plan first, so that a spec that is there always has its plan."""
        self.store.write(PLAN, plan.to_bytes())
        self.store.write(SPEC, spec.to_yaml().encode())

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

    def parts(self, kind: str, shard: int | None = None) -> Iterator[PartName]:
        """The committed objects of a kind, in the order of the shards."""
        prefix = f"{kind}/" if shard is None else PartName.prefix(kind, shard)
        for item in self.store.list(prefix):
            part = PartName.parse(item.name)
            if part is not None:
                yield part

    def done_rows(self, shard: int) -> frozenset[str]:
        """The ids of a shard's rows that are in a visible object.

        Raises:
            OutputError: An object is damaged.
        """
        done: set[str] = set()
        for kind in (RESULTS, ERRORS):
            for part in self.parts(kind, shard):
                try:
                    table = pq.read_table(io.BytesIO(self.store.read(str(part))), columns=["row_id"])
                except FileNotFoundError:  # moved since it was listed: its rows are open
                    continue
                except (pa.ArrowException, KeyError, OSError) as error:
                    raise OutputError(
                        f"{self.path}/{part}: cannot be read: {error}\nFor the whole list: magbatch verify {self.path}"
                    ) from error
                done.update(row_ids_of(table))
        return frozenset(done)

    def done_counts(self, plan: Plan) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """How many rows of each shard are done: from one listing of names.

        Names are exact while one attempt alone has written for a shard. Where two did, a row may
        count twice, so those few shards are read.
        """
        counts = np.zeros(plan.num_shards, dtype=np.int64)
        attempts: dict[int, str] = {}
        twice: set[int] = set()
        for kind in (RESULTS, ERRORS):
            for part in self.parts(kind):
                if part.shard < plan.num_shards:
                    counts[part.shard] += part.rows
                    if attempts.setdefault(part.shard, part.attempt) != part.attempt:
                        twice.add(part.shard)
        twice.update(int(shard) for shard in np.flatnonzero(counts > plan.shard_sizes))
        with ThreadPoolExecutor(READERS) as pool:
            for shard, done in zip(twice, pool.map(self.done_rows, twice), strict=True):
                counts[shard] = len(done)
        return counts

    # The proof

    def audit(self, plan: Plan, more: dict[str, list[str]] | None = None) -> Iterator[ShardAudit]:
        """Hold every object against the plan, shard by shard; the objects are read whole.

        Args:
            plan: The job's plan.
            more: Columns to hand on in each part's table, by kind, beside those that totals need.
        """
        with ThreadPoolExecutor(READERS) as pool:
            shards = self._by_shard(plan)
            while window := list(islice(shards, AUDIT_WINDOW)):
                names = [name for _, parts in window for name in parts]
                found = dict(
                    zip(names, pool.map(lambda name: read_part(self.store, name, more or {}), names), strict=True)
                )
                for shard, parts in window:
                    planned = plan.shard(shard).row_ids() if shard < plan.num_shards else []
                    yield audit_shard(shard, planned, [(name, found[name]) for name in parts])

    def _by_shard(self, plan: Plan) -> Iterator[tuple[int, list[PartName]]]:
        """Every planned shard with its objects, then objects of shards that no plan knows."""
        groups = {kind: groupby(self.parts(kind), key=lambda part: part.shard) for kind in (RESULTS, ERRORS)}
        heads = {kind: next(((shard, list(parts)) for shard, parts in group), None) for kind, group in groups.items()}
        shard = 0
        while shard < plan.num_shards or any(head is not None for head in heads.values()):
            if shard >= plan.num_shards:
                shard = min(head[0] for head in heads.values() if head is not None)
            found: list[PartName] = []
            for kind, head in heads.items():
                if head is not None and head[0] == shard:
                    found += head[1]
                    heads[kind] = next(((number, list(parts)) for number, parts in groups[kind]), None)
            yield shard, found
            shard += 1

    # The end

    def finalise(
        self,
        spec: JobSpec,
        plan: Plan,
        see: Callable[[str, pa.Table], None],
        report: Callable[[Totals], None],
    ) -> tuple[Totals, list[str]]:
        """Prove the job complete and write its manifest, last.

        Args:
            spec: The job.
            plan: Its plan.
            see: Is given each kept object's kind and narrow columns, the carried ones included.
            report: Is given the totals before the manifest is written.

        Returns:
            The totals, and the ids of rows that are still missing: with any of those, nothing is
            written and the job is not complete.

        Raises:
            OutputError: An object is damaged or unplanned.
        """
        carry, expected = carried_columns(spec.input), spec.input.columns.expected
        more = {RESULTS: [*carry, "answer"] if expected else carry, ERRORS: carry}
        totals, missing, entries = Totals(), list[str](), list[dict[str, Any]]()
        superseded: list[PartName] = []
        overlapping: list[tuple[PartName, list[str]]] = []

        def keep(part: Part) -> None:
            totals.add(part.name.kind, part.table, expected)
            entries.append(part.entry())
            see(part.name.kind, part.table)

        for audit in self.audit(plan, more):
            if audit.problems or audit.unplanned:
                wrong = "\n".join(f"  {line}" for line in [*audit.problems, *audit.unplanned][:20])
                raise OutputError(
                    f"{self.path}: the output is damaged:\n{wrong}\nFor the whole list: magbatch verify {self.path}"
                )
            missing += audit.missing
            superseded += audit.superseded
            for part, row_ids in audit.keep:
                if len(row_ids) < len(part.row_ids):
                    overlapping.append((part.name, row_ids))
                else:
                    keep(part)
        if missing:
            return totals, missing
        for name, row_ids in overlapping:
            keep(self._rewrite(name, row_ids, more))
        entries += self._empty_parts(spec, plan, {entry["name"].partition("/")[0] for entry in entries})
        manifest = {
            "version": 1,
            "schema_version": SCHEMA_VERSION,
            "job": spec.name,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "planned_rows": plan.rows,
            "plan_sha256": hashlib.sha256(self.store.read(PLAN)).hexdigest(),
            **asdict(totals),
            "parts": entries,
        }
        report(totals)
        self.store.write(MANIFEST, json.dumps(manifest, indent=1).encode())
        for name in superseded:
            self.store.move(str(name), f"{SUPERSEDED}/{name}")
        self.tidy()
        return totals, []

    def tidy(self) -> None:
        """After the manifest: what it does not name leaves the folders that users glob."""
        manifest = self.manifest() or {"parts": []}
        named = {entry["name"] for entry in manifest["parts"]}
        for kind in (RESULTS, ERRORS):
            for part in self.parts(kind):
                if str(part) not in named:
                    self.store.move(str(part), f"{SUPERSEDED}/{part}")
        for draft in list(self.store.list("_magbatch/tmp/")):
            self.store.delete(draft.name)

    def _strangers(self) -> list[str]:
        """Objects in the folders that users glob which are none of this job's."""
        names = (item.name for kind in (RESULTS, ERRORS) for item in self.store.list(f"{kind}/"))
        return [f"{name}: not an object of this job" for name in names if PartName.parse(name) is None]

    def _rewrite(self, name: PartName, row_ids: list[str], more: dict[str, list[str]]) -> Part:
        """The rows of an object that count, as an object of their own: none is edited in place."""
        table = pq.read_table(io.BytesIO(self.store.read(str(name))))
        table = table.filter(pa.compute.is_in(table.column("row_id"), pa.array(row_ids)))
        rewritten = PartName(name.kind, name.shard, new_attempt(), 0, len(row_ids))
        self._write(rewritten, table)
        found = read_part(self.store, rewritten, more)
        if isinstance(found, str):
            raise OutputError(f"{self.path}: {found}")
        return found

    def _write(self, name: PartName, table: pa.Table) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self.store.write(str(name), sink.getvalue())
        return sink.getvalue()

    def _empty_parts(self, spec: JobSpec, plan: Plan, present: set[str]) -> Iterator[dict[str, Any]]:
        """A folder without rows still opens with `results/*.parquet`, and has the contract's columns."""
        carry = pa.schema([plan.columns.field(name) for name in carried_columns(spec.input)])
        for kind, schema in ((RESULTS, results_schema(carry)), (ERRORS, errors_schema(carry))):
            if kind not in present:
                name = PartName(kind, 0, new_attempt(), 0, 0)
                data = self._write(name, schema.empty_table())
                yield {
                    "name": str(name),
                    "rows": 0,
                    "records": 0,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }

    def verify(self) -> tuple[dict[str, Any], list[str]]:
        """Recompute everything from the objects alone.

        Returns:
            Counts (planned, answered, failed, objects), and what is wrong, one line each.

        Raises:
            OutputError: There is no job here.
        """
        _, plan = self.open_job()
        manifest = self.manifest()
        expected = {entry["name"]: entry for entry in (manifest or {"parts": []})["parts"]}
        problems = [] if manifest else ["no manifest: the job is not complete"]
        if manifest and manifest["plan_sha256"] != hashlib.sha256(self.store.read(PLAN)).hexdigest():
            problems.append(f"{PLAN} is not the plan that the manifest was made for")
        problems += self._strangers()
        totals, seen = Totals(), set[str]()
        for audit in self.audit(plan):
            problems += audit.problems
            if audit.missing:
                first = audit.missing[0]
                problems.append(
                    f"gap: {len(audit.missing)} planned rows of shard {audit.shard} are in no object: {first}, …"
                )
            problems += [f"not planned: {where}" for where in audit.unplanned]
            problems += [f"duplicate: {name} repeats rows of other objects" for name in audit.superseded]
            seen.update(str(name) for name in audit.names)
            for part, _ in audit.keep:
                totals.add(part.name.kind, part.table)
                entry = expected.get(str(part.name))
                if manifest and entry is None:
                    problems.append(f"{part.name}: not in the manifest")
                elif entry is not None and entry["sha256"] != part.sha256:
                    problems.append(f"{part.name}: its checksum is not the manifest's")
        problems += [f"{name}: in the manifest, but not there" for name in expected.keys() - seen]
        objects = len(seen)
        counts = {"planned": plan.rows, "answered": totals.answered, "failed": totals.failed, "objects": objects}
        return counts, problems
