"""The report of the run that completes a job, made from what `finalise` reads of the output."""

import socket
import time
from dataclasses import asdict

import pyarrow as pa

from magbatch.engines.base import EngineArgs
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import examples
from magbatch.plan.plan import Plan
from magbatch.report.page import report_files
from magbatch.report.progress import JobProgress
from magbatch.report.report import Report, Run, SlotUsage, settings
from magbatch.report.runs import with_this
from magbatch.report.scan import DuplicateIds, Slowest
from magbatch.report.wrong import WrongAnswers
from magbatch.spec import JobSpec
from magbatch.totals import Totals


class ReportMaker:
    """Collects the content of a report while `finalise` reads the objects.

    Args:
        spec: The job.
        plan: Plan of the job.
        ledger: Output of the job.
        args: Resolved engine arguments.
        the_run: The run that completes the job.
        progress: Progress of the job.
        ids: Counter of repeated user ids.

    Attributes:
        wrong: Examples of wrong answers.
    """

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        ledger: Ledger,
        args: EngineArgs,
        the_run: Run,
        progress: JobProgress,
        ids: DuplicateIds,
    ) -> None:
        self._spec, self._plan, self._ledger = spec, plan, ledger
        self._run, self._progress, self._ids = the_run, progress, ids
        self._settings = settings(spec, args)
        self._user_id = plan.output_name(spec.input.columns.id)
        self._slowest = Slowest(self._user_id)
        self.wrong = WrongAnswers(self._user_id)
        self._report: Report | None = None

    def observe(self, kind: str, table: pa.Table) -> None:
        """Take the narrow columns of one object; `kind` is `results` or `errors`."""
        self._ids.observe(kind, table)
        self._slowest.observe(kind, table)

    def files(self, totals: Totals) -> dict[str, bytes]:
        """Content of report and page, by name; called once all objects were observed."""
        self._report = self._made(totals)
        return report_files(self._report)

    def report(self) -> Report:
        """The report whose files were made."""
        assert self._report is not None, "finalise makes the report of a job without missing rows"
        return self._report

    def _made(self, totals: Totals) -> Report:
        progress, now = self._progress, self._progress.snapshot()
        return Report(
            job=self._spec.name,
            output=self._ledger.path,
            planned=self._plan.rows,
            totals=totals,
            duplicate_ids=self._ids.count() if self._user_id else None,
            run=self._run,
            settings=self._settings,
            spent=now.spent,
            history=progress.history,
            replicas=[SlotUsage.of(slot) for slot in now.slots],
            slowest=self._slowest.rows(),
            cost=now.cost,
            currency=self._spec.cost.currency,
            began=progress.began,
            ended=time.time(),
            letters=[asdict(one) for one in examples(self._ledger, totals.by_code)],
            wrong=self.wrong.found,
            runs=with_this(progress.past, now.started, now.done - progress.before, socket.gethostname()),
        )
