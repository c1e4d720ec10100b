"""Preview of a job for `magbatch plan`: starts nothing and writes nothing."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from magbatch.engines import engine_args
from magbatch.engines.base import EngineArgs
from magbatch.errors import SpecError
from magbatch.fleet.devices import check_gpus
from magbatch.jobs.limit import limited
from magbatch.jobs.opening import check_unused, frozen_plan
from magbatch.jobs.steps import steps_of
from magbatch.ledger.ledger import Ledger
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.report.exporter import check_address
from magbatch.report.report import settings
from magbatch.report.stored import stored_report, whole
from magbatch.rows import DeadLetter, Prompt, Shard
from magbatch.spec import JobSpec, unchecked


class OutputContent(StrEnum):
    """Content of an output before a run: a closed list."""

    NEW = "new"
    REPLACED = "replaced"  # holds a job of another spec without any answer, which this job replaces
    BEGUN = "begun"  # holds this job, which continues
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class OutputState:
    """State of an output before a run.

    Attributes:
        state: Content of the output.
        done: Committed rows.
        answered: Answered rows of a complete job; else 0.
        failed: Dead letters of a complete job; else 0.
    """

    state: OutputContent
    done: int = 0
    answered: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class FirstPrompt:
    """Prompt of the first row.

    Attributes:
        row_id: Id of the row.
        tokens: Tokens of its first request.
        images: Images of its first request.
        parts: Page groups of the row, each one request; 1 if the row is one prompt.
        text: The prompt as the model reads it.
    """

    row_id: str
    tokens: int
    images: int
    parts: int
    text: str


@dataclass(frozen=True, slots=True)
class FirstFailure:
    """Dead letter that the first row would become.

    Attributes:
        row_id: Id of the row.
        step: Step that fails.
        code: Error code.
        error: Error message.
    """

    row_id: str
    step: str
    code: str
    error: str


@dataclass(frozen=True, slots=True)
class ShardPreview:
    """A shard of a plan.

    Attributes:
        shard: Number of the shard.
        rows: Rows of the shard.
        files: Input files of these rows.
    """

    shard: int
    rows: int
    files: list[str]


@dataclass(frozen=True, slots=True)
class Preview:
    """Preview of a run: what it would do, and why it would not start.

    Attributes:
        job: Name of the job.
        files: Number of input files.
        bad_files: Path and problem of each file that becomes a dead letter.
        rows: Input rows.
        shards: Number of shards.
        rows_in_a_shard: Fewest and most rows of a shard; zeros for a job without rows.
        output: Path or URL of the output.
        output_state: State of the output.
        group: Input column whose equal values share a prompt prefix; None if the rows keep their order.
        shard_list: The shards; None unless they were asked for.
        first: First row of a readable file; None if there is no such row, or the job is complete.
        notes: Remarks for a person, one line each.
        refused: Reasons why a run would not start on this machine, one line each.
        settings: All settings of the spec, and the resolved engine arguments.
    """

    job: str
    files: int
    bad_files: list[str]
    rows: int
    shards: int
    rows_in_a_shard: tuple[int, int]
    output: str
    output_state: OutputState
    group: str | None
    shard_list: list[ShardPreview] | None
    first: FirstPrompt | FirstFailure | None
    notes: list[str]
    refused: list[str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as `magbatch plan --json` prints it."""
        found = asdict(self) | {"rows_in_a_shard": [*self.rows_in_a_shard]}
        first = found.pop("first")
        last = {name: found.pop(name) for name in ("notes", "refused", "settings")}
        if self.shard_list is None:
            del found["shard_list"]
        return found | {"first_prompt": first} | last


def preview(spec: JobSpec, limit: int | None = None, *, shards: bool = False) -> Preview:
    """Preview a job.

    Args:
        spec: The job.
        limit: Rows of a sample, as for `run`; None for the whole job.
        shards: Whether to list each shard.

    Raises:
        JobError: The same errors as `run` would raise, except those in `Preview.refused`.
    """
    spec = limited(spec, limit)
    ledger = Ledger(spec.output.path)
    known = frozen_plan(spec, ledger)
    if known is not None and ledger.manifest() is not None:
        return _of_complete_job(spec, ledger, known, shards=shards)
    state = OutputState(OutputContent.NEW)
    if known is not None:
        state = OutputState(OutputContent.BEGUN, int(ledger.done_counts(known).sum()))
    elif ledger.spec() is not None:
        state = OutputState(OutputContent.REPLACED)
    else:
        check_unused(ledger)
    plan = known or make_plan(spec, limit)
    spec = plan.pinned(spec)
    steps = steps_of(spec, plan)
    args = engine_args(spec, steps.checkpoint.facts, plan.engine_hints)
    first = _first_row(plan, Preparer(JobContext(spec, plan.columns), steps))
    notes = [*_cut_note(spec, args, first), *(unchecked(spec.model) or "").splitlines(), *plan.notes]
    refused = _refusals(spec, left=plan.rows - state.done)
    return _preview(
        spec, plan, state, shards=shards, first=first, notes=notes, refused=refused, settings=settings(spec, args)
    )


def not_default(settings: dict[str, Any], model: type[BaseModel] = JobSpec) -> dict[str, Any]:
    """Settings that differ from their default, or have none.

    Args:
        settings: Settings of a spec or of a section of a spec.
        model: Pydantic model of the spec or section.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        field = model.model_fields.get(name)
        kind = field.annotation if field is not None else None
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = not_default(value, kind)
            found |= {name: inner} if inner else {}
        elif field is None or field.default is PydanticUndefined or value != field.default:
            found[name] = value
    return found


def _of_complete_job(spec: JobSpec, ledger: Ledger, plan: Plan, *, shards: bool) -> Preview:
    """Preview of a complete job. Neither its input nor its model is needed."""
    whole(ledger)
    report = stored_report(ledger)
    state = OutputState(OutputContent.COMPLETE, plan.rows, report.totals.answered, report.totals.failed)
    return _preview(spec, plan, state, shards=shards, settings=report.settings)


def _preview(
    spec: JobSpec,
    plan: Plan,
    state: OutputState,
    *,
    shards: bool,
    settings: dict[str, Any],
    first: FirstPrompt | FirstFailure | None = None,
    notes: list[str] | None = None,
    refused: list[str] | None = None,
) -> Preview:
    sizes = plan.shard_sizes
    return Preview(
        job=spec.name,
        files=plan.num_files(),
        bad_files=[problem for _, problem in plan.bad_files()],
        rows=plan.rows,
        shards=plan.num_shards,
        rows_in_a_shard=(int(sizes.min()), int(sizes.max())) if plan.num_shards else (0, 0),
        output=spec.output.path,
        output_state=state,
        group=plan.group,
        shard_list=_shard_list(plan) if shards else None,
        first=first,
        notes=notes or [],
        refused=refused or [],
        settings=settings,
    )


def _first_row(plan: Plan, preparer: Preparer) -> FirstPrompt | FirstFailure | None:
    """Prompt or dead letter of the first row of a readable file; None if there is no such file."""
    for shard in plan.shards():
        segment = next((segment for segment in shard.segments if segment.problem is None), None)
        if segment is not None:
            work = preparer(Shard(shard.index, (replace(segment, rows=1),)))
            return _first_prompt(work.prompts[0], preparer) if work.prompts else _first_failure(work.failed[0])
    return None


def _first_prompt(prompt: Prompt, preparer: Preparer) -> FirstPrompt:
    request = prompt.page_groups[0] if prompt.reads_page_groups else prompt
    return FirstPrompt(
        row_id=prompt.row_id,
        tokens=len(request.token_ids),
        images=len(request.images),
        parts=prompt.requests,
        text=preparer.tokenizer.show(request.token_ids),
    )


def _first_failure(dead: DeadLetter) -> FirstFailure:
    return FirstFailure(dead.row_id, dead.step, dead.code, dead.message)


def _cut_note(spec: JobSpec, args: EngineArgs, first: FirstPrompt | FirstFailure | None) -> list[str]:
    """Remark on an answer limit that the context cannot hold; empty if it can."""
    room = args.max_model_len - (first.tokens if isinstance(first, FirstPrompt) else 0)
    if spec.sampling.max_tokens > room:
        return [
            f"sampling.max_tokens {spec.sampling.max_tokens} exceeds the context: the first row has room for {room}"
        ]
    return []


def _refusals(spec: JobSpec, *, left: int) -> list[str]:
    """Reasons why a run would not start on this machine, although it could on another.

    Args:
        spec: The job.
        left: Rows that are not done. If 0, no engine starts and no GPU is needed.
    """
    said = list[str]()
    checks: list[Callable[[], None]] = [partial(check_gpus, spec)] if left else []
    checks.append(partial(check_address, spec.metrics))
    for check in checks:
        try:
            check()
        except SpecError as error:
            said.append(str(error))
    return said


def _shard_list(plan: Plan) -> list[ShardPreview]:
    return [
        ShardPreview(shard.index, shard.rows, list(dict.fromkeys(segment.path for segment in shard.segments)))
        for shard in plan.shards()
    ]
