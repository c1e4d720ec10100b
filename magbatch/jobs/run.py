"""A job from its spec to its manifest.

plan -> freeze -> answer what is open -> prove -> manifest. Every part of it can be interrupted at any
moment and begun again: what is committed is never asked again, and a job is complete exactly when
its manifest is there.
"""

import io
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from rich.console import Console

from magbatch.errors import StorageError
from magbatch.fleet.devices import check_gpus
from magbatch.jobs.complete import complete
from magbatch.jobs.opening import begun, first_look, limited, new_plan, take_place, under_way
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import verdict
from magbatch.ledger.open import hold, lease_on, patient_ledger, refusal_shown
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.pipeline.read import ShardReader
from magbatch.pipeline.render import Renderer
from magbatch.plan.plan import Plan
from magbatch.report.exporter import check_address
from magbatch.report.report import Report, sample_line
from magbatch.report.stored import mend, stored_report
from magbatch.rows import Shard
from magbatch.schema import RESULTS
from magbatch.spec import JobSpec
from magbatch.spec.columns import rendered_columns
from magbatch.storage.contact import is_unattended
from magbatch.storage.patience import patiently
from magbatch.temporary import check_temporary_files

SAMPLE_ROWS = 3
T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """What `run` came to.

    Attributes:
        report: As it is stored beside the output.
        samples: Question, reasoning and answer of a few rows, each on one line.
        already: The job was complete before.
        too_many_failed: More dead letters than the spec allows, or no answer at all.
        why: Which of both, with the codes and what to do; None of a job that is well.
    """

    report: dict[str, Any]
    lines: list[str]
    samples: list[tuple[str, str, str]]
    already: bool
    too_many_failed: bool
    why: str | None = None


def run(
    spec: JobSpec,
    console: Console,
    limit: int | None = None,
    frozen: Plan | None = None,
    command: tuple[str, ...] = ("run",),
) -> Outcome:
    """Run a job, or go on with it.

    Args:
        spec: The job.
        console: Where progress goes.
        limit: Answer only this many rows, spread evenly, into an output of their own.
        frozen: The plan of a job that is new, where it is made already.
        command: The command line after `magbatch`, as the output is to remember it; without secrets.

    Raises:
        JobError: As its kinds say.
    """
    began = time.monotonic()
    spec = limited(spec, limit)
    ledger = Ledger(spec.output.path)

    def at_first(operation: Callable[[], T]) -> T:
        return patiently(
            operation, spec.output.patience_s if is_unattended() else 0.0, refusal_shown(console, "storage")
        )

    known = at_first(lambda: begun(spec, ledger))
    if known is not None and ledger.manifest() is not None:
        mend(ledger, lease_on(ledger.path, console.print, spec.output.patience_s))
        report = stored_report(ledger)
        return _outcome(spec, report, ledger, known, already=True)
    plan = known or frozen or at_first(lambda: new_plan(spec, ledger, limit))
    if known is None and plan.rows:
        check_gpus(spec)
    # What is wrong with model, tokenizer or prompt shows before anything is written.
    at_first(lambda: Preparer(JobContext(plan.pinned(spec), plan.columns)))
    check_address(spec.metrics)
    check_temporary_files()
    with ExitStack() as stack:
        with first_look():
            lease = stack.enter_context(hold(ledger.path, console.print, spec.output.patience_s, command))
        known = begun(spec, ledger)  # another run may have come and gone meanwhile
        if known is not None and ledger.manifest() is not None:
            return _outcome(spec, stored_report(ledger), ledger, known, already=True)
        if known is None:
            take_place(spec, ledger, lease, console)
            with first_look(new=True):
                plan = ledger.begin(spec, plan)
            for note in plan.notes:
                console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        plan = known or plan
        with under_way():
            report = complete(spec, plan, patient_ledger(spec, console), console, lease, began, judged=True)
    return _outcome(spec, report, ledger, plan, already=False)


def _outcome(spec: JobSpec, report: Report, ledger: Ledger, plan: Plan, *, already: bool) -> Outcome:
    why = verdict(spec, plan.rows, report.totals, ledger)
    return Outcome(
        report=report.to_dict(),
        lines=report.lines(already=already),
        samples=[] if already else _samples_if_any(spec, ledger, plan),
        already=already,
        too_many_failed=why is not None,
        why=why,
    )


def _samples_if_any(spec: JobSpec, ledger: Ledger, plan: Plan) -> list[tuple[str, str, str]]:
    """A few rows for a person to look at. The job is complete: what stands in the way of them is no matter."""
    try:
        return _samples(spec, ledger, plan)
    except (StorageError, OSError, pa.ArrowException):
        return []


def _samples(spec: JobSpec, ledger: Ledger, plan: Plan) -> list[tuple[str, str, str]]:
    """Question, reasoning and answer of the first few rows that were answered."""
    rows: list[dict[str, Any]] = []
    for part in ledger.objects(RESULTS):
        if part.rows:
            columns = ["row_id", "sample", "reasoning", "answer"]
            table = pq.read_table(io.BytesIO(ledger.store.read(str(part))), columns=columns)
            first = table.filter(pyarrow.compute.equal(table.column("sample"), 0)).slice(0, SAMPLE_ROWS - len(rows))
            rows += [{**row, "shards": part.shards} for row in first.to_pylist()]
        if len(rows) == SAMPLE_ROWS:
            break
    return [
        (
            sample_line(_question(spec, plan, row["shards"], row["row_id"])),
            sample_line(row["reasoning"]),
            sample_line(row["answer"]),
        )
        for row in rows
    ]


def _question(spec: JobSpec, plan: Plan, shards: range, row_id: str) -> str:
    """The text that was asked for a row, read from the input again."""
    key, _, position = row_id.rpartition("-")
    shard, segment = next(
        (shard, segment)
        for shard in shards
        for segment in plan.shard(shard).segments
        if segment.key == key and segment.start <= int(position) < segment.start + segment.rows
    )
    one = replace(segment, start=int(position), rows=1)
    read = ShardReader(plan.columns)(Shard(shard, (one,)))
    if not read.row_ids:
        return f"(no longer readable: {read.failed[0][1].message})"
    used = read.table.select(rendered_columns(spec))  # what is only carried may hold what Python cannot
    values = {name: value for name, value in used.to_pylist()[0].items() if value is not None}
    if spec.input.columns.messages:
        users = [message for message in values[spec.input.columns.messages] if message["role"] == "user"]
        return str(users[-1]["content"]) if users else ""
    return Renderer(spec, None).question(values)
