"""Rows that failed, or whose thinking was truncated, asked again into the same dataset.

A retry is a job of its own below the output: a subset of the plan, by the same row ids, with a spec that may differ
in what is asked of the engine. It is answered by what answers any job, and is as resumable. Then what it answered
takes the place of what was there: new objects first, one manifest that names them, and only then the old ones are
moved away. No object is edited, and interrupted anywhere, the same command goes on.

`OUTPUT/_magbatch/retries/<number>/` is where a retry lies until the manifest counts it.
"""

import difflib
import functools
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute
from rich.console import Console

from magbatch.answers.grading import Grading
from magbatch.errors import ErrorCode, SpecChangedError, SpecError
from magbatch.jobs.complete import complete
from magbatch.ledger.contract import grading_of, narrow_columns, schema_of
from magbatch.ledger.finalise import renew
from magbatch.ledger.layout import RETRIES
from magbatch.ledger.ledger import READERS, Ledger
from magbatch.ledger.letters import examples, verdict
from magbatch.ledger.manifest import Entry, Manifest, RetryRecord
from magbatch.ledger.objects import Spool, StoredObject, damaged, read_columns, read_object, row_groups
from magbatch.ledger.open import hold, patient_ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.units import units
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.plan.make import subset_plan
from magbatch.plan.plan import Plan
from magbatch.report.accounts import add_usage, publish_usage
from magbatch.report.page import report_files
from magbatch.report.scan import DuplicateIds
from magbatch.report.stored import put_right, stored_report
from magbatch.rows import ReasoningStatus
from magbatch.schema import ERRORS, RESULTS, ObjectName, new_attempt
from magbatch.spec import JobSpec, differences, parse
from magbatch.spec.secrets import without_value
from magbatch.totals import Totals

FOLDER = RETRIES
OBJECTS_AT_HAND = 8  # of the retry: consecutive shards of the job take their rows from the same few
# What a retry may ask otherwise: the rows, what is carried, and the prompt stay what they are.
MAY_CHANGE = (
    "sampling", "reasoning", "limits", "replicas", "model.engine_args",
    "input.fetch_from", "input.fetch_private", "input.fetch_timeout_s",
    "output.commit_interval_s", "output.commit_rows", "output.patience_s", "metrics", "cost", "deadline",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are asked again.

    Attributes:
        codes: Dead letters with one of these error codes; all dead letters where there is none.
        truncated: Instead, answered rows of which a sample ran out of tokens, or into a loop, while thinking.
    """

    codes: tuple[str, ...] = ()
    truncated: bool = False

    @classmethod
    def of(cls, where: list[str], only: str | None) -> "Choice":
        """The choice that a command line makes.

        Raises:
            SpecError: It makes none, or two.
        """
        for code in where:
            if code not in set(ErrorCode):
                close = difflib.get_close_matches(code, list(ErrorCode), n=1)
                hint = f"did you mean {close[0]}?" if close else f"the codes are {', '.join(ErrorCode)}"
                raise SpecError(f"--where {code}: no such error code; {hint}")
        if only not in {None, ReasoningStatus.TRUNCATED}:
            raise SpecError(f"--only {only}: only `truncated` can be chosen")
        if where and only:
            raise SpecError("--where chooses dead letters, --only truncated chooses answers: use one of them")
        return cls(tuple(dict.fromkeys(where)), only is not None)

    @property
    def kind(self) -> str:
        """Where such rows lie."""
        return RESULTS if self.truncated else ERRORS

    def __str__(self) -> str:
        if self.truncated:
            return "rows whose thinking was truncated"
        return "dead letters" + (f" with the code {' or '.join(self.codes)}" if self.codes else "")

    @property
    def options(self) -> tuple[str, ...]:
        """As a command line makes the choice."""
        only = ("--only", str(ReasoningStatus.TRUNCATED)) if self.truncated else ()
        return (*(word for code in self.codes for word in ("--where", code)), *only)

    def rows(self, ledger: Ledger, manifest: Manifest) -> list[str]:
        """The ids of these rows in a complete job."""
        counts, wanted = manifest.totals.by_code, self.codes
        if self.truncated:
            counts, wanted = manifest.totals.by_status, (str(ReasoningStatus.TRUNCATED),)
        if not any(count and (not wanted or name in wanted) for name, count in counts.items()):
            return []
        column = "reasoning_status" if self.truncated else "error_code"

        def chosen(name: ObjectName) -> list[str]:
            try:
                table = read_columns(ledger.store, name, ["row_id", column])
            except FileNotFoundError as error:
                raise damaged(ledger.store, f"{name}: in the manifest, but not there") from error
            if wanted:
                table = table.filter(pa.compute.is_in(table.column(column), pa.array(wanted)))
            return list(table.column("row_id").unique().to_pylist())

        names = [name for name in _entries(manifest) if name.kind == self.kind]
        with ThreadPoolExecutor(1 if any(name.span > 1 for name in names) else READERS) as pool:
            return [row_id for found in pool.map(chosen, names) for row_id in found]


@dataclass(slots=True)
class Retried:
    """What `retry` came to.

    Attributes:
        job: The job's name.
        chosen: Which rows, in words.
        rows: Asked again; 0 where there was nothing to retry.
        answered: Rows that have a new answer now.
        failed: Dead letters among the rest, by error code; such a row keeps what it had.
        truncated: Rows whose thinking was truncated again; such a row keeps what it had.
        whole_files: Chosen, but not asked: dead letters of files that could not be read when the job was planned.
        totals: Of the job as it is now.
        too_many_failed: More dead letters than the spec allows, or no answer at all.
        why: Which of both, with the codes and what to do.
    """

    job: str
    chosen: str
    rows: int = 0
    answered: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    whole_files: int = 0
    totals: Totals = field(default_factory=Totals)
    too_many_failed: bool = False
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry that was begun, or is about to be.

    Attributes:
        ledger: The job's output.
        choice: Which rows.
        overrides: What is asked otherwise, as the command line says it.
        spec: The retry's own, into a place of its own.
        plan: The retry's own.
        number: Counts the retries of the job, from 1.
        whole_files: Chosen dead letters that stand for whole files.
    """

    ledger: Ledger
    choice: Choice
    overrides: tuple[str, ...]
    spec: JobSpec
    plan: Plan
    number: int
    whole_files: int = 0

    def output(self) -> Ledger:
        """The retry's own output."""
        return Ledger(self.spec.output.path, self.spec.output.patience_s)


def retry(output: str, choice: Choice, overrides: list[str], console: Console) -> Retried:
    """Ask rows of a complete job again, or go on with that.

    Args:
        output: The job's output.
        choice: Which rows.
        overrides: `key.path=value` items over the job's spec.
        console: Where progress goes.

    Raises:
        JobError: As its kinds say.
    """
    began = time.monotonic()
    spec, _, _ = Ledger(output).complete_job()
    _respec(spec, overrides)  # what may not be set is stored nowhere, the lease included
    ledger = patient_ledger(spec.with_output(output), console)
    command = ("retry", *choice.options, *(word for item in overrides for word in ("--set", item)))
    with hold(ledger.path, console.print, spec.output.patience_s, command) as lease:
        put_right(ledger, lease.confirm)
        sweep(ledger)
        found = prepare(ledger, choice, overrides)
        if isinstance(found, Retried):
            return found
        # What is wrong shows before anything is written.
        Preparer(JobContext(found.plan.pinned(found.spec), found.plan.columns))
        if found.output().spec() is None:
            found = replace(found, plan=found.output().begin(found.spec, found.plan))
        if found.output().manifest() is None:
            console.print(f"{found.plan.rows:,} {choice} are asked again", markup=False, highlight=False)
            place = patient_ledger(found.spec, console)
            complete(found.spec, found.plan, place, console, lease, began, judged=False)  # these rows failed before
        return merge(found, lease.confirm)


def prepare(ledger: Ledger, choice: Choice, overrides: list[str]) -> Retry | Retried:
    """What a retry would be, or the one that was begun and is the same; nothing is written.

    Args:
        ledger: The output of a complete job, tidy.
        choice: Which rows.
        overrides: `key.path=value` items.

    Returns:
        The retry, or where there is nothing to retry what it came to.

    Raises:
        SpecError: What is set may not change.
        SpecChangedError: Another retry was begun and is not finished.
        OutputError: The job is not complete, or damaged.
    """
    spec, plan, manifest = ledger.complete_job()
    stored_report(ledger)
    number = len(manifest.retries) + 1
    changed = _respec(spec, overrides).with_output(f"{ledger.path}/{FOLDER}/{number:04d}")
    row_ids = choice.rows(ledger, manifest)
    subset = subset_plan(plan, row_ids, changed)
    found = Retry(ledger, choice, tuple(overrides), changed, subset, number, len(row_ids) - subset.rows)
    place = found.output()
    begun, begun_plan = place.spec(), place.plan()
    if begun is not None and begun_plan is not None:
        differing = differences(begun, changed)
        if [*begun_plan.row_ids()] != [*subset.row_ids()]:
            differing.append(f"the rows: {begun_plan.rows:,} then, {subset.rows:,} {choice} now")
        if differing:
            listed = "\n".join(f"  {line}" for line in differing)
            raise SpecChangedError(
                f"{ledger.path}: another retry was begun and is not finished; what differs:\n{listed}\n"
                "Repeat it as it was to finish it, or drop it and what it answered: "
                f"magbatch retry {ledger.path} --drop"
            )
        return Retry(ledger, choice, tuple(overrides), changed, begun_plan, number, found.whole_files)
    if not subset.rows:
        return Retried(spec.name, str(choice), whole_files=found.whole_files, totals=manifest.totals)
    return found


def drop(output: str, console: Console) -> bool:
    """Forget a retry that was begun and is not finished; whether there was one.

    Raises:
        JobError: As its kinds say.
    """
    ledger = Ledger(output)
    ledger.complete_job()
    with hold(ledger.path, console.print, command=("retry", "--drop")) as lease:
        put_right(ledger, lease.confirm)
        sweep(ledger)
        spec, plan, manifest = ledger.complete_job()
        number = len(manifest.retries) + 1
        place = Ledger(f"{ledger.path}/{FOLDER}/{number:04d}")
        begun = place.plan()
        if begun is None or place.spec() is None:
            return False
        report = stored_report(ledger)
        add_usage(report, place, number, begun.rows)
        made = report_files(report)
        lease.confirm()
        publish_usage(report, ledger)
        # Counted, so that what a replica of it still commits can never be taken for a later retry's.
        record = RetryRecord(_now(), dropped=True)
        renew(ledger, spec, plan, manifest, [], [], made, retries=(*manifest.retries, record))
        sweep(ledger)
        return True


def sweep(ledger: Ledger) -> None:
    """Delete what is left of retries that the manifest counts."""
    manifest = ledger.manifest()
    counted = len(manifest.retries) if manifest is not None else 0
    for item in list(ledger.store.list(f"{FOLDER}/")):
        number = item.name.removeprefix(f"{FOLDER}/").partition("/")[0]
        if number.isdigit() and int(number) <= counted:
            ledger.store.delete(item.name)


def merge(retry: Retry, confirm: Callable[[], None]) -> Retried:
    """Put what a complete retry answered in the place of what was there.

    Args:
        retry: Its own job is complete.
        confirm: Is called before the manifest is renewed; what it raises ends the work.

    Raises:
        OutputError: The job or the retry is damaged.
        StorageError: The storage refuses.
    """
    ledger, place = retry.ledger, retry.output()
    spec, plan, manifest = ledger.complete_job()
    _, _, inner = place.complete_job()
    answers = _Answers(place, inner, retry.choice)
    change = _replace(ledger, spec, plan, manifest, retry.choice.kind, answers)
    report = stored_report(ledger)
    report.totals = change.totals
    add_usage(report, place, retry.number, retry.plan.rows)
    if retry.choice.kind == ERRORS:
        report.letters = [
            asdict(one) for one in examples(ledger, change.totals.by_code, but=answers.holders, gone=change.gone)
        ]
    report.wrong = [one for one in report.wrong if one.row_id not in answers.holders]
    if change.new_ids:
        gone = set(change.gone)
        names = [name for name in _entries(manifest) if name not in gone]
        names += [entry.name for entry in change.new]
        report.duplicate_ids = _duplicate_ids(ledger, str(plan.output_name(spec.input.columns.id)), names)
    record = RetryRecord(
        _now(), chosen=str(retry.choice), set=retry.overrides, rows=retry.plan.rows, answered=len(answers.holders)
    )
    made = report_files(report)
    confirm()
    retries = (*manifest.retries, record)
    publish_usage(report, ledger)
    renew(ledger, spec, plan, manifest, change.gone, change.new, made, retries=retries, totals=change.totals)
    tidy(ledger, confirm)
    sweep(ledger)
    why = verdict(retry.spec, plan.rows, change.totals, ledger)
    if why is None and not answers.holders and not retry.choice.truncated and retry.spec.limits.max_failed_rows is None:
        why = verdict(retry.spec, retry.plan.rows, inner.totals, ledger)
    return Retried(
        job=spec.name,
        chosen=str(retry.choice),
        rows=retry.plan.rows,
        answered=len(answers.holders),
        failed=inner.totals.by_code,
        truncated=answers.truncated,
        whole_files=retry.whole_files,
        totals=change.totals,
        too_many_failed=why is not None,
        why=why,
    )


class _Answers:
    """What a retry answered.

    Attributes:
        holders: The rows that get a new answer, and the object of the retry that holds it.
        truncated: How many were truncated again.
    """

    def __init__(self, place: Ledger, manifest: Manifest, choice: Choice) -> None:
        self._store = place.store
        self._checksums = _entries(manifest)
        self.holders: dict[str, ObjectName] = {}
        self.truncated = 0
        for name in (name for name in self._checksums if name.kind == RESULTS):
            table = read_columns(self._store, name, ["row_id", "reasoning_status"])
            cut = table.filter(pa.compute.equal(table.column("reasoning_status"), str(ReasoningStatus.TRUNCATED)))
            worse = set(cut.column("row_id").to_pylist()) if choice.truncated else set()
            self.truncated += len(worse)
            rows = table.column("row_id").unique().to_pylist()
            self.holders |= dict.fromkeys((row_id for row_id in rows if row_id not in worse), name)
        self._load = functools.lru_cache(OBJECTS_AT_HAND)(self._read)

    def _read(self, name: ObjectName) -> pa.Table:
        return pa.concat_tables(row_groups(self._store, name, self._checksums[name]))

    def write(self, spool: Spool, row_ids: set[str]) -> None:
        """Hand the answers of some rows on."""
        for name in sorted({self.holders[row_id] for row_id in row_ids}):
            spool.add(_rows(self._load(name), row_ids, kept=True))


@dataclass(slots=True)
class _Change:
    """Objects that take the place of others.

    Attributes:
        totals: Of the job after the change.
        grading: What is held against the right answers.
        gone: Objects that are replaced.
        new: Manifest entries of those that replace them.
        new_ids: A replaced row had no user id: it could not be read then.
    """

    totals: Totals
    grading: Grading | None
    gone: list[ObjectName] = field(default_factory=list)
    new: list[Entry] = field(default_factory=list)
    new_ids: bool = False

    def take(self, part: StoredObject) -> None:
        self.gone.append(part.name)
        self.totals = self.totals.plus(Totals.of(part.name.kind, part.table, self.grading), -1)

    def give(self, part: StoredObject) -> None:
        self.new.append(part.entry())
        self.totals = self.totals.plus(Totals.of(part.name.kind, part.table, self.grading))


def _replace(ledger: Ledger, spec: JobSpec, plan: Plan, manifest: Manifest, kind: str, answers: _Answers) -> _Change:
    """Write the objects that take the place of those of a kind that hold answered rows."""
    store, more, user_id = ledger.store, narrow_columns(spec, plan), plan.output_name(spec.input.columns.id)
    checksums, attempt = _entries(manifest), new_attempt(plan.id)
    of_shard: dict[int, set[str]] = {}
    for row_id, shard in plan.shards_of(answers.holders).items():
        of_shard.setdefault(shard, set()).add(row_id)
    change = _Change(manifest.totals, grading_of(spec, plan))
    for shards, names in units(sorted(checksums, key=lambda name: (name.shard, name)), plan.num_shards):
        row_ids = set().union(*(of_shard.get(shard, set()) for shard in shards))
        if not row_ids:
            continue
        seq, replaced = itertools.count(), 0
        for name in (name for name in names if name.kind == kind):
            part = read_object(store, name, more)
            if isinstance(part, str):
                raise damaged(store, part)
            mine = row_ids.intersection(part.row_ids)
            if not mine:
                continue
            change.take(part)
            replaced += len(mine)
            if user_id is not None:
                change.new_ids |= _rows(part.table, mine, kept=True).column(user_id).null_count > 0
            if len(mine) < len(part.row_ids):
                rest = Spool(kind, schema_of(spec, plan, kind))
                for table in row_groups(store, name, checksums[name]):
                    rest.add(_rows(table, mine, kept=False))
                change.give(rest.commit(store, name.shards, attempt, next(seq), more))
        if replaced != len(row_ids):
            raise damaged(store, f"shard {shards[0]}: rows of the manifest are not in its objects")
        spool = Spool(RESULTS, schema_of(spec, plan, RESULTS))
        answers.write(spool, row_ids)
        change.give(spool.commit(store, shards, attempt, next(seq), more))
    return change


def _rows(table: pa.Table, row_ids: set[str], *, kept: bool) -> pa.Table:
    """The records of some rows, or all others."""
    mask = pa.compute.is_in(table.column("row_id"), pa.array(list(row_ids), pa.string()))
    return table.filter(mask if kept else pa.compute.invert(mask))


def _duplicate_ids(ledger: Ledger, column: str, names: list[ObjectName]) -> int:
    """Counted anew: a row that could not be read before has a user id now."""
    with DuplicateIds(column) as ids:
        for name in names:
            columns = [column] if name.kind == ERRORS else [column, "sample"]
            ids.observe(name.kind, read_columns(ledger.store, name, columns))
        return ids.count()


def _respec(spec: JobSpec, overrides: list[str]) -> JobSpec:
    """The job's spec with what is set, where that may change."""
    for item in overrides:
        key = item.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE):
            raise SpecError(
                f"--set {without_value(item)}: {key} may not change in a retry, whose rows stand beside the others; "
                f"what may: {', '.join(MAY_CHANGE)}"
            )
    return parse(spec.to_yaml(), overrides, origin="the job's spec with what is set")


def _entries(manifest: Manifest) -> dict[ObjectName, str]:
    """The objects of a manifest that have rows, and their checksums."""
    return {entry.name: entry.sha256 for entry in manifest.objects if entry.rows}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
