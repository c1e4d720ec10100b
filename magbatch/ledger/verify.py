"""The proof of an output, from its objects alone: everything that its manifest says is made anew and compared.

Bytes that the manifest does not vouch for are not looked into: of a spec, a plan or an object that was changed, that
it was changed is all that is said.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from magbatch.answers.grading import RULE
from magbatch.errors import JobError, OutputError, StorageError, short_message
from magbatch.ledger.audit import Audit
from magbatch.ledger.layout import MANIFEST, NAMED_FILES, PAGE, PLAN, REPORT, SPEC
from magbatch.ledger.lease import holder_of
from magbatch.ledger.ledger import READERS, Ledger, grading_of, narrow_columns
from magbatch.ledger.manifest import Entry, Manifest, StoredFile, is_as_written
from magbatch.ledger.objects import StoredObject
from magbatch.ledger.staging import is_staged
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, ObjectName
from magbatch.spec import JobSpec, is_remote, parse
from magbatch.storage.odd_names import odd_names
from magbatch.totals import Totals

TRIES = 5  # of a proof during which a retry or a compaction has put another manifest in the place of the one it had
SETTLING_S = (0.05, 0.1, 0.2)  # waits for a command that is about to move a file to its place
MOST_SHOWN_CHARS = 60  # of a value
MAKES_ANEW = "magbatch run SPEC makes it anew"
_FOREIGN = "written for another job, in whose place this one is"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        planned: Input rows of the job.
        answered: Rows with an answer, in sound objects.
        failed: Dead letters in sound objects.
        open: Planned rows that are in no sound object.
        objects: Committed objects that are there.
        complete: The job has a manifest.
        problems: What is wrong, one line each. Open rows of a job that is not complete are none.
        notes: What a person should know, one line each, though nothing is wrong.
        run_mends: Whether `run` of the spec mends all that is wrong: no row is touched by it.
    """

    planned: int
    answered: int
    failed: int
    open: int
    objects: int
    complete: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    run_mends: bool = False

    @property
    def verified(self) -> bool:
        """Whether the job is complete, and every row of it is there once and as it was written."""
        return self.complete and not self.problems


def verify(ledger: Ledger, progress: Progress = lambda done, objects: None) -> Verification:
    """Make everything that a manifest says anew, from the objects.

    Args:
        ledger: The output.
        progress: Is told how many objects are checked, and how many there are.

    Raises:
        OutputError: There is no job here.
        StorageError: The storage is away.
    """
    for _ in range(TRIES):
        proof = _Proof(ledger, progress)
        found = proof.result()
        if not found.problems or proof.nobody_has_worked():
            break
    return found


class _Proof:
    """One proof: problems are collected on the way.

    Args:
        ledger: The output.
        progress: As for `verify`.
    """

    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        self._ledger, self._progress = ledger, progress
        self._problems, self._notes = list[str](), list[str]()
        self._names = set[str]()
        self._totals, self._open, self._versions = Totals(), 0, set[str]()
        self._mended = set[str]()  # problems that `run` mends
        self._holder = _worker(ledger)
        self._stored = self._load(MANIFEST)
        self._complete = self._stored is not None or bool(self._problems)
        self._manifest: Manifest | None = None
        if self._stored is not None:
            try:
                self._manifest = Manifest.from_json(self._stored, edited_too=True)
            except OutputError as error:
                self._problems.append(str(error))
        self._entries = {entry.name: entry for entry in self._manifest.objects} if self._manifest is not None else {}

    def nobody_has_worked(self) -> bool:
        """Whether the manifest is the one that this proof is about, and no command has begun or ended meanwhile."""
        return self._load(MANIFEST) == self._stored and _worker(self._ledger) == self._holder

    def result(self) -> Verification:
        """Look at everything."""
        job = self._job()
        objects = self._look_at_names()
        if job is not None:
            self._audit(*job, objects)
            self._compare(*job)
        else:
            self._check_bytes()
        self._problems += [f"{name}: in the manifest, but not there" for name in self._lost()]
        return Verification(
            planned=job[1].rows if job is not None else self._manifest.planned_rows if self._manifest else 0,
            answered=self._totals.answered,
            failed=self._totals.failed,
            open=self._open,
            objects=len(self._names),
            complete=self._complete,
            problems=tuple(short_message(line) for line in self._problems),
            notes=tuple(self._notes),
            run_mends=bool(self._problems) and self._mended.issuperset(self._problems),
        )

    # The job's own files

    def _load(self, name: str) -> bytes | None:
        """A file; None where there is none, or it cannot be read, which is a problem."""
        try:
            return self._ledger.load(name)
        except StorageError as error:
            if error.mistake or error.missing_root:
                raise OutputError(str(error)) from error
            if error.passing:
                raise
            self._problems.append(f"{name}: cannot be read: {error}")
            return None

    def _job(self) -> tuple[JobSpec, Plan] | None:
        """The job; None where its spec or its plan is not what it was.

        Raises:
            OutputError: There is none.
        """
        data = {name: self._load(name) for name in NAMED_FILES}
        if self._stored is None and (data[SPEC] is None or data[PLAN] is None):
            raise self._ledger.no_job()
        vouched = self._check_files(data)
        spec = self._read(SPEC, data[SPEC], lambda data: parse(data.decode(errors="replace"), origin=SPEC), vouched)
        plan = self._read(PLAN, data[PLAN], Plan.from_bytes, vouched)
        return None if spec is None or plan is None else (spec, plan)

    def _check_files(self, data: dict[str, bytes | None]) -> dict[str, bool]:
        """Hold the job's own files against the manifest; returns whether it vouches for each."""
        manifest = self._manifest
        if manifest is None:
            return {}
        named = {file.name: file for file in manifest.files}
        if manifest.version == 1:
            self._notes.append(f"{MANIFEST} is of an older version: it has no checksums of {SPEC} and {REPORT}")
            named[PLAN] = StoredFile(PLAN, len(data[PLAN] or b""), manifest.plan_sha256)
        for name in (REPORT, PAGE) if manifest.version > 1 else ():
            file = named.get(name)
            if file is None:
                self._mendable(f"{name}: not in the manifest; {MAKES_ANEW}")
            elif not file.fits(data[name]):
                data[name] = self._settled(file)
        for name, file in named.items():
            if not file.fits(data[name]):
                self._not_the_same(file, there=data[name] is not None)
        self._look_into_report(manifest, data[REPORT])
        return {name: file.fits(data[name]) for name, file in named.items()}

    def _settled(self, file: StoredFile) -> bytes | None:
        """A file once the command that wrote the manifest has put it in its place, which takes a moment."""
        data = None
        for wait_s in SETTLING_S:
            data = self._load(file.name)
            if file.fits(data) or not is_staged(self._ledger.store, file):
                break
            time.sleep(wait_s)
        return self._load(file.name) if not file.fits(data) else data

    def _not_the_same(self, file: StoredFile, *, there: bool) -> None:
        what = "its checksum is not the manifest's" if there else "in the manifest, but not there"
        if file.name not in {REPORT, PAGE}:
            self._problems.append(f"{file.name}: {what}")
        elif is_staged(self._ledger.store, file):
            self._mendable(
                f"{file.name}: an end that was interrupted has not put it in its place; magbatch run SPEC does"
            )
        else:
            self._mendable(f"{file.name}: {what}; {MAKES_ANEW}")

    def _mendable(self, problem: str) -> None:
        """Note a problem that `run` mends."""
        self._problems.append(problem)
        self._mended.add(problem)

    def _look_into_report(self, manifest: Manifest, data: bytes | None) -> None:
        """Hold what a report says of its job's end against the manifest."""
        try:
            said = json.loads(data or b"")
            written_by_this = "letters" in said  # no version before has written them
            counted = int(said.get("retries_counted", 0))
        except (ValueError, TypeError, AttributeError):
            if manifest.version == 1:
                self._mendable(f"{REPORT}: not there, or damaged; {MAKES_ANEW}")
            return
        if manifest.version == 1 and written_by_this:
            self._problems.append(f"{MANIFEST} says version 1, but {REPORT} was written with a later one")
        if manifest.version > 1 and counted != len(manifest.retries):
            self._problems.append(f"{MANIFEST} has {len(manifest.retries)} retries, {REPORT} has counted {counted}")

    def _read(self, name: str, data: bytes | None, read: Callable[[bytes], Any], vouched: dict[str, bool]) -> Any:
        """A file as what it holds; None where it is not what it was."""
        if data is None:
            if name not in vouched:  # else it is said already
                self._problems.append(f"{name}: not there")
            return None
        if not vouched.get(name, True):
            return None
        try:
            return read(data)
        except JobError as error:
            if vouched.get(name):
                raise  # it is as it was written: this machine lacks something that it names
            self._problems.append(f"{name}: cannot be read: {error}")
            return None

    # The objects

    def _look_at_names(self) -> int:
        """Find what is no object of this job in the folders that users glob; returns how many are."""
        store, count = self._ledger.store, 0
        for kind in (RESULTS, ERRORS):
            for item in store.list(f"{kind}/"):
                if ObjectName.parse(item.name) is None:
                    self._problems.append(f"{item.name}: not an object of this job")
                else:
                    count += 1
        if not is_remote(self._ledger.path):
            own = (*NAMED_FILES, MANIFEST)
            self._problems += [f"{name}: {what}" for name, what in odd_names(store.root, (RESULTS, ERRORS), own)]
        return count

    def _audit(self, spec: JobSpec, plan: Plan, objects: int) -> None:
        """Read every object, and hold it against the plan and against what the manifest says of it."""
        grading, checked = grading_of(spec, plan), 0
        checksums = {name: entry.sha256 for name, entry in self._entries.items()}
        only = None
        if self._manifest is not None:
            only = self._entries.keys()
            self._note_strays(self._ledger.object_names())
        for audit in self._ledger.audit(plan, narrow_columns(spec, plan), checksums, only):
            self._problems += audit.problems
            self._problems += [f"not planned: {where}" for where in audit.unplanned]
            self._open += len(audit.missing)
            if self._complete:
                self._problems += _gaps_and_repeats(audit)
            else:
                self._notes += [f"{name}: {_FOREIGN}; the end of the run moves it away" for name in audit.foreign]
            self._names.update(str(name) for name in audit.names)
            for part, _ in audit.keep:
                self._problems += self._against_manifest(part)
                try:
                    self._totals.add(part.name.kind, part.table, grading)
                except (pa.ArrowException, ValueError, ArithmeticError) as error:
                    self._problems.append(f"{part.name}: holds what cannot be counted: {error}")
            checked += len(audit.names)
            self._progress(checked, max(checked, objects))

    def _against_manifest(self, part: StoredObject) -> Iterator[str]:
        """What the manifest says otherwise of a sound object."""
        self._versions.add(part.schema_version)
        if self._manifest is None:
            return
        entry = self._entries.get(part.name)
        if entry is None:
            return
        found = part.entry()
        for field in ("rows", "records", "bytes"):
            said, is_ = getattr(entry, field), getattr(found, field)
            if said != is_:
                yield f"{MANIFEST} says that {part.name} has {said} {field}, it has {is_}"

    def _note_strays(self, names: list[ObjectName]) -> None:
        """Objects that the manifest does not name are moved away by the next command."""
        strays = [name for name in names if name not in self._entries]
        self._names.update(map(str, strays))
        for name in strays:
            self._mendable(f"{name}: not in the manifest")

    def _check_bytes(self) -> None:
        """Without a plan that can be trusted: hold each object against its checksum, and look no further."""
        names, checked = self._ledger.object_names(), 0
        self._names.update(str(name) for name in names)
        if self._manifest is None:
            self._problems.append("objects not checked: neither a manifest nor a plan says what they should be")
            return
        self._note_strays(names)
        entries = [self._entries[name] for name in names if name in self._entries]
        with ThreadPoolExecutor(READERS) as pool:
            for wrong in pool.map(self._wrong_bytes, entries):
                self._problems += [wrong] if wrong else []
                checked += 1
                self._progress(checked, len(entries))

    def _wrong_bytes(self, entry: Entry) -> str | None:
        name = str(entry.name)
        data = self._load(name)
        fits = StoredFile(name, entry.bytes, entry.sha256).fits(data)
        return None if fits else f"{name}: its checksum is not the manifest's"

    def _lost(self) -> list[str]:
        return sorted({str(name) for name in self._entries} - self._names)

    # The manifest as a whole

    def _compare(self, spec: JobSpec, plan: Plan) -> None:
        """Hold what the manifest says against the spec, the plan and the objects."""
        manifest, before = self._manifest, len(self._problems)
        if manifest is None or self._stored is None:
            return
        said = [
            ("job", manifest.job, spec.name, "the spec gives"),
            ("planned_rows", manifest.planned_rows, plan.rows, "the plan gives"),
            ("model_revision", manifest.model_revision, plan.revision, "the plan gives"),
        ]
        if manifest.version > 1:
            said.append(("graded_by", manifest.graded_by, RULE, "its version has"))
        if self._versions and manifest.schema_version not in self._versions:
            said.append(
                ("schema_version", manifest.schema_version, ", ".join(sorted(self._versions)), "the objects give")
            )
        of_plan = manifest.file(PLAN)
        if of_plan is not None:
            said.append(("plan_sha256", manifest.plan_sha256, of_plan.sha256, "the plan gives"))
        if self._mended.issuperset(self._problems):  # else other sums are no wonder
            said += [(name, getattr(manifest.totals, name), count, "the objects give") for name, count in self._sums()]
        self._problems += [
            f"{MANIFEST} says {name} {_shown(was)}, {source} {_shown(now)}"
            for name, was, now, source in said
            if was != now
        ]
        if manifest.version > 1 and len(self._problems) == before and not is_as_written(self._stored):
            self._problems.append(f"{MANIFEST}: it was changed after it was written: its manifest_sha256 does not fit")

    def _sums(self) -> Iterator[tuple[str, Any]]:
        """Sums of the objects that the manifest has too, counted by the same rules."""
        assert self._manifest is not None
        skipped = set(self._manifest.unknown_sums)
        if self._manifest.graded_by != RULE:
            skipped |= {"graded", "right"}
        return ((one.name, getattr(self._totals, one.name)) for one in fields(Totals) if one.name not in skipped)


def _worker(ledger: Ledger) -> tuple[Any, ...] | None:
    """Who works on an output, or has done so last, and whether that is over."""
    holder = holder_of(ledger.store)
    return None if holder is None else (holder.command, holder.host, holder.pid, holder.released)


def _gaps_and_repeats(audit: Audit) -> Iterator[str]:
    if audit.missing:
        where = f"shard {audit.shards[0]}" + (f" to {audit.shards[-1]}" if len(audit.shards) > 1 else "")
        yield f"gap: {len(audit.missing)} planned rows of {where} are in no sound object: {audit.missing[0]}, …"
    yield from (f"{name}: {_FOREIGN}" for name in audit.foreign)
    yield from (f"duplicate: {name} repeats rows of other objects" for name in audit.superseded)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MOST_SHOWN_CHARS else f"{text[: MOST_SHOWN_CHARS - 1]}…"
