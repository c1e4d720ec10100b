"""Run of a job, from its spec to its manifest: plan, freeze, answer the open rows, prove, write the manifest.

A run can be interrupted at any moment and repeated. No committed row is asked again, and a job is complete exactly
when its manifest exists.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console

from magbatch.fleet.devices import check_gpus
from magbatch.jobs.complete import complete
from magbatch.jobs.limit import limited
from magbatch.jobs.opening import (
    as_output_error,
    frozen_plan,
    new_plan,
    replace_unanswered_job,
    with_resume_note,
)
from magbatch.jobs.samples import RowSample, row_samples
from magbatch.jobs.steps import steps_of
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import verdict
from magbatch.ledger.open import hold, lease_on, patient_ledger, refusal_shown
from magbatch.plan.plan import Plan
from magbatch.report.exporter import check_address
from magbatch.report.report import Report
from magbatch.report.stored import mend, stored_report
from magbatch.spec import JobSpec
from magbatch.storage.contact import is_unattended
from magbatch.storage.patience import patiently
from magbatch.temporary import check_temporary_files

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Outcome of a run.

    Attributes:
        report: Report of the complete job, as it is stored.
        samples: A few answered rows; none if the job was complete before.
        already: Whether the job was complete before the run.
        why: Reason for exit code 1, with error codes and a remedy; None for exit code 0.
    """

    report: Report
    samples: tuple[RowSample, ...]
    already: bool
    why: str | None = None

    @property
    def too_many_failed(self) -> bool:
        """Whether more rows failed than the spec allows, or no row was answered."""
        return self.why is not None


def run(
    spec: JobSpec,
    console: Console,
    limit: int | None = None,
    frozen: Plan | None = None,
    command: tuple[str, ...] = ("run",),
) -> RunOutcome:
    """Run a job, or continue an interrupted one.

    Args:
        spec: Spec of the job.
        console: Console for progress messages.
        limit: Rows of a sample, spread evenly and written to an output of their own; None for the whole job.
        frozen: Plan of a new job, if the caller has already made one.
        command: Command line after `magbatch`, stored in the output for `status`; without secrets.

    Raises:
        JobError: The job cannot be run or completed; subclasses say why.
    """
    began = time.monotonic()
    spec = limited(spec, limit)
    ledger = Ledger(spec.output.path)

    def with_patience(operation: Callable[[], T]) -> T:
        # A person sees a refusal at once; an unattended run waits for the storage.
        patience_s = spec.output.patience_s if is_unattended() else 0.0
        return patiently(operation, patience_s, refusal_shown(console, "storage"))

    known = with_patience(lambda: frozen_plan(spec, ledger))
    if known is not None and ledger.manifest() is not None:
        mend(ledger, lease_on(ledger.path, console.print, spec.output.patience_s))
        return _outcome(spec, stored_report(ledger), ledger, known, already=True)
    plan = known or frozen or with_patience(lambda: new_plan(spec, ledger, limit))
    if known is None and plan.rows:
        check_gpus(spec)
    checkpoint = with_patience(lambda: steps_of(spec, plan)).checkpoint
    check_address(spec.metrics)
    check_temporary_files()
    with ExitStack() as stack:
        with as_output_error():
            lease = stack.enter_context(hold(ledger.path, console.print, spec.output.patience_s, command))
        known = frozen_plan(spec, ledger)  # again under the lease: another run may have started or completed the job
        if known is not None and ledger.manifest() is not None:
            return _outcome(spec, stored_report(ledger), ledger, known, already=True)
        if known is None:
            plan = _frozen_now(spec, plan, ledger, lease, console)
        elif known.revision != plan.revision:  # the other run has planned with another version of the model
            checkpoint = steps_of(spec, known).checkpoint
        plan = known or plan
        with with_resume_note():
            own = patient_ledger(spec, console)
            report = complete(spec, plan, checkpoint, own, console, lease, began, judged=True)
    return _outcome(spec, report, ledger, plan, already=False)


def _frozen_now(spec: JobSpec, plan: Plan, ledger: Ledger, lease: Lease, console: Console) -> Plan:
    """Freeze the plan of a new job in its output, and show its notes."""
    replace_unanswered_job(spec, ledger, lease, console)
    with as_output_error(new=True):
        plan = ledger.begin(spec, plan)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    return plan


def _outcome(spec: JobSpec, report: Report, ledger: Ledger, plan: Plan, *, already: bool) -> RunOutcome:
    return RunOutcome(
        report=report,
        samples=() if already else row_samples(spec, ledger, plan),
        already=already,
        why=verdict(spec, plan.rows, report.totals, ledger),
    )
