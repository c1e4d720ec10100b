"""Retry: ask rows again that failed, or whose reasoning was truncated. New answers join the same dataset.

A retry is a job of its own below the output, in `OUTPUT/_magbatch/retries/<number>/`. Its plan is a subset of the job's
plan with the same row ids. Its spec may differ in how the engine is asked. It is answered and resumed like any job.
Its answers are then merged: new objects are written, a new manifest names them, and the old objects are moved away.
After an interruption at any point, the same command continues.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from rich.console import Console

from magbatch.errors import SpecChangedError, SpecError
from magbatch.jobs.choice import Choice, filled_objects
from magbatch.jobs.complete import complete
from magbatch.jobs.replacement import Answers, Replacement, write_replacement
from magbatch.jobs.steps import steps_of
from magbatch.ledger.finalise import renew
from magbatch.ledger.layout import RETRIES, retry_output
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import examples, verdict
from magbatch.ledger.manifest import Manifest, RetryRecord
from magbatch.ledger.objects import read_columns
from magbatch.ledger.open import hold, patient_ledger
from magbatch.ledger.tidy import tidy
from magbatch.plan.make import subset_plan
from magbatch.plan.plan import Plan
from magbatch.report.accounts import add_usage, publish_usage
from magbatch.report.page import report_files
from magbatch.report.report import Report
from magbatch.report.scan import DuplicateIds
from magbatch.report.stored import put_right, stored_report
from magbatch.schema import ERRORS, ObjectName
from magbatch.spec import JobSpec, differences, parse
from magbatch.spec.secrets import without_value
from magbatch.totals import Totals

# Spec fields that a retry may set. Rows, carried columns and prompt must stay the same within one dataset.
MAY_CHANGE = (
    "sampling", "reasoning", "limits", "replicas", "model.engine_args",
    "input.fetch_from", "input.fetch_private", "input.fetch_timeout_s",
    "output.commit_interval_s", "output.commit_rows", "output.patience_s", "metrics", "cost", "deadline",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RetryOutcome:
    """Outcome of a retry.

    Attributes:
        job: Name of the job.
        chosen: The chosen rows, in words for a person.
        rows: Rows asked again; 0 if there was nothing to retry.
        answered: Rows that have a new answer.
        failed: Rows that failed again, as error code to count; they keep their old answer or dead letter.
        truncated: Rows whose reasoning was truncated again; they keep their old answer.
        whole_files: Chosen dead letters that stand for whole unreadable files; they are not asked.
        totals: Totals of the job after the retry.
        too_many_failed: Whether more rows failed than the spec allows, or no row was answered.
        why: Reason for exit code 1, with error codes and a remedy; None for exit code 0.
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
    """Retry that is new or unfinished.

    Attributes:
        ledger: Output of the job.
        choice: The chosen rows.
        overrides: `key.path=value` items of the command line.
        spec: Spec of the retry, with an output of its own.
        plan: Plan of the retry.
        number: Number of the retry within the job, from 1.
        whole_files: Chosen dead letters that stand for whole unreadable files.
    """

    ledger: Ledger
    choice: Choice
    overrides: tuple[str, ...]
    spec: JobSpec
    plan: Plan
    number: int
    whole_files: int = 0

    def output(self) -> Ledger:
        """Output of the retry."""
        return Ledger(self.spec.output.path, self.spec.output.patience_s)


def retry(output: str, choice: Choice, overrides: list[str], console: Console) -> RetryOutcome:
    """Ask rows of a complete job again, or continue an unfinished retry.

    Args:
        output: Path or URL of the job's output.
        choice: Rows to ask again.
        overrides: `key.path=value` items over the job's spec.
        console: Console for progress messages.

    Raises:
        JobError: The retry cannot be done; subclasses say why.
    """
    began = time.monotonic()
    spec, _, _ = Ledger(output).complete_job()
    _respec(spec, overrides)  # refused before the lease stores the command line, which may hold a secret
    ledger = patient_ledger(spec.with_output(output), console)
    command = ("retry", *choice.options, *(word for item in overrides for word in ("--set", item)))
    with hold(ledger.path, console.print, spec.output.patience_s, command) as lease:
        put_right(ledger, lease.confirm)
        sweep(ledger)
        found = prepare(ledger, choice, overrides)
        if isinstance(found, RetryOutcome):
            return found
        checkpoint = steps_of(found.spec, found.plan).checkpoint
        if found.output().spec() is None:
            found = replace(found, plan=found.output().begin(found.spec, found.plan))
        if found.output().manifest() is None:
            console.print(f"asking {found.plan.rows:,} {choice} again", markup=False, highlight=False)
            own = patient_ledger(found.spec, console)
            # Not judged: these rows failed before, so many failures are to be expected.
            complete(found.spec, found.plan, checkpoint, own, console, lease, began, judged=False)
        return merge(found, lease.confirm)


def prepare(ledger: Ledger, choice: Choice, overrides: list[str]) -> Retry | RetryOutcome:
    """Prepare a retry; nothing is written.

    Args:
        ledger: Output of a complete job, tidied by `put_right`.
        choice: Rows to ask again.
        overrides: `key.path=value` items over the job's spec.

    Returns:
        A new retry, or the unfinished one if it is the same. An outcome if there is nothing to retry.

    Raises:
        SpecError: A field that may not change is set.
        SpecChangedError: Another retry is unfinished.
        OutputError: The job is not complete, or damaged.
    """
    spec, plan, manifest = ledger.complete_job()
    stored_report(ledger)
    number = len(manifest.retries) + 1
    changed = _respec(spec, overrides).with_output(_folder(ledger, number))
    row_ids = choice.rows(ledger, manifest)
    subset = subset_plan(plan, row_ids, changed)
    found = Retry(ledger, choice, tuple(overrides), changed, subset, number, len(row_ids) - subset.rows)
    if (unfinished := _unfinished_plan(found)) is not None:
        return replace(found, plan=unfinished)
    if not subset.rows:
        return RetryOutcome(spec.name, str(choice), whole_files=found.whole_files, totals=manifest.totals)
    return found


def _unfinished_plan(retry: Retry) -> Plan | None:
    """Plan of the unfinished retry of the same number; None if there is none.

    Raises:
        SpecChangedError: The unfinished retry has another spec or other rows.
    """
    begun_spec, begun_plan = retry.output().spec(), retry.output().plan()
    if begun_spec is None or begun_plan is None:
        return None
    differing = differences(begun_spec, retry.spec)
    if [*begun_plan.row_ids()] != [*retry.plan.row_ids()]:
        differing.append(f"the rows: {begun_plan.rows:,} then, {retry.plan.rows:,} {retry.choice} now")
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        path = retry.ledger.path
        raise SpecChangedError(
            f"{path}: another retry is unfinished; differences:\n{listed}\n"
            "To finish it, repeat that retry with its options. To drop it and its answers: "
            f"magbatch retry {path} --drop"
        )
    return begun_plan


def drop(output: str, console: Console) -> bool:
    """Drop an unfinished retry and its answers.

    Args:
        output: Path or URL of the job's output.
        console: Console for progress messages.

    Returns:
        Whether there was an unfinished retry.

    Raises:
        JobError: The retry cannot be dropped; subclasses say why.
    """
    ledger = Ledger(output)
    ledger.complete_job()
    with hold(ledger.path, console.print, command=("retry", "--drop")) as lease:
        put_right(ledger, lease.confirm)
        sweep(ledger)
        spec, plan, manifest = ledger.complete_job()
        number = len(manifest.retries) + 1
        own = Ledger(_folder(ledger, number))
        begun = own.plan()
        if begun is None or own.spec() is None:
            return False
        report = stored_report(ledger)
        add_usage(report, own, number, begun.rows)
        made = report_files(report)
        lease.confirm()
        publish_usage(report, ledger)
        # The manifest counts a dropped retry, so its number is not used again. Objects that one of its replicas
        # commits late can then never be taken for those of a later retry.
        record = RetryRecord(_now(), dropped=True)
        renew(ledger, spec, plan, manifest, [], [], made, retries=(*manifest.retries, record))
        sweep(ledger)
        return True


def sweep(ledger: Ledger) -> None:
    """Delete the folders of retries that the manifest counts.

    Args:
        ledger: Output of the job.
    """
    manifest = ledger.manifest()
    counted = len(manifest.retries) if manifest is not None else 0
    for item in list(ledger.store.list(f"{RETRIES}/")):
        number = item.name.removeprefix(f"{RETRIES}/").partition("/")[0]
        if number.isdigit() and int(number) <= counted:
            ledger.store.delete(item.name)


def merge(retry: Retry, confirm: Callable[[], None]) -> RetryOutcome:
    """Merge the answers of a complete retry into its job.

    Args:
        retry: Retry whose own job is complete.
        confirm: Called before the manifest is renewed; raises LeaseError if the lease is lost.

    Raises:
        OutputError: The job or the retry is damaged.
        StorageError: The storage refuses.
    """
    ledger, own = retry.ledger, retry.output()
    spec, plan, manifest = ledger.complete_job()
    _, _, inner = own.complete_job()
    answers = Answers(own, inner, truncated=retry.choice.truncated)
    change = write_replacement(ledger, spec, plan, manifest, retry.choice.kind, answers)
    report = _merged_report(retry, manifest, answers, change)
    if change.new_ids:
        column = str(plan.output_name(spec.input.columns.id))
        report.duplicate_ids = _duplicate_ids(ledger, column, manifest, change)
    record = RetryRecord(
        _now(), chosen=retry.choice.stored, set=retry.overrides, rows=retry.plan.rows, answered=len(answers.holders)
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
    return RetryOutcome(
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


def _merged_report(retry: Retry, manifest: Manifest, answers: Answers, change: Replacement) -> Report:
    """Report of the job after the merge."""
    ledger = retry.ledger
    report = stored_report(ledger)
    report.totals = change.totals
    add_usage(report, retry.output(), retry.number, retry.plan.rows)
    if retry.choice.kind == ERRORS:
        dead_letters = examples(ledger, change.totals.by_code, but=answers.holders, gone=change.gone)
        report.letters = [asdict(one) for one in dead_letters]
    report.wrong = [one for one in report.wrong if one.row_id not in answers.holders]
    return report


def _duplicate_ids(ledger: Ledger, column: str, manifest: Manifest, change: Replacement) -> int:
    """Count repeated user ids again: rows whose input could not be read before have a user id now.

    Args:
        ledger: Output of the job.
        column: Output column of the user id.
        manifest: Manifest before the merge.
        change: Objects that replace others.
    """
    gone = set[ObjectName](change.gone)
    names = [name for name in filled_objects(manifest) if name not in gone] + [entry.name for entry in change.new]
    with DuplicateIds(column) as ids:
        for name in names:
            columns = [column] if name.kind == ERRORS else [column, "sample"]
            ids.observe(name.kind, read_columns(ledger.store, name, columns))
        return ids.count()


def _respec(spec: JobSpec, overrides: list[str]) -> JobSpec:
    """The job's spec with overrides.

    Raises:
        SpecError: A field that may not change is set, or a value is wrong.
    """
    for item in overrides:
        key = item.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE):
            raise SpecError(
                f"--set {without_value(item)}: {key} may not change in a retry: its rows join those of the job; "
                f"fields that may change: {', '.join(MAY_CHANGE)}"
            )
    return parse(spec.to_yaml(), overrides, origin="the job's spec with --set")


def _folder(ledger: Ledger, number: int) -> str:
    """Output of a retry, until the manifest counts it."""
    return retry_output(ledger.path, number)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
