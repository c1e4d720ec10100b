"""What a job would do: nothing is started and nothing is written."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from magbatch.engines.defaults import engine_args
from magbatch.errors import SpecError
from magbatch.fleet.devices import check_gpus
from magbatch.jobs.opening import begun, check_unused, limited
from magbatch.ledger.ledger import Ledger
from magbatch.model.checkpoint import locate
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.report.exporter import check_address
from magbatch.report.report import settings
from magbatch.report.stored import stored_report, whole
from magbatch.rows import DeadLetter, Prompt, Shard
from magbatch.spec import JobSpec, unchecked

NEW, REPLACED, BEGUN, COMPLETE = "new", "replaced", "begun", "complete"


@dataclass(frozen=True, slots=True)
class OutputState:
    """What the output holds already.

    Attributes:
        state: `new`; `replaced`: a job of another spec that has answered nothing, whose place this one takes;
            `begun`: this job, which goes on; or `complete`.
        done: Rows that are committed.
        answered: Of a complete job.
        failed: Of a complete job.
    """

    state: str
    done: int = 0
    answered: int = 0
    failed: int = 0


def preview(spec: JobSpec, limit: int | None = None, *, shards: bool = False) -> dict[str, Any]:
    """What `plan` shows: nothing is started and nothing is written.

    Args:
        spec: The job.
        limit: As for `run`.
        shards: Whether each shard is listed.

    Returns:
        `refused` says why a run on this machine would not start, where all else is right.

    Raises:
        JobError: As `run` would.
    """
    spec = limited(spec, limit)
    ledger = Ledger(spec.output.path)
    known = begun(spec, ledger)
    if known is not None and ledger.manifest() is not None:
        return _complete(spec, ledger, known, shards=shards)
    state = OutputState(NEW)
    if known is not None:
        state = OutputState(BEGUN, int(ledger.done_counts(known).sum()))
    elif ledger.spec() is not None:
        state = OutputState(REPLACED)
    else:
        check_unused(ledger)
    plan = known or make_plan(spec, limit)
    spec = plan.pinned(spec)
    preparer = Preparer(JobContext(spec, plan.columns))
    args = engine_args(spec, locate(spec.model, weights=False).facts, plan.engine_hints)
    first = _first(plan, preparer)
    notes = [*_notes(spec, args, first), *(unchecked(spec.model) or "").splitlines(), *plan.notes]
    refused = _refused(spec, left=plan.rows - state.done)
    return _facts(spec, plan, state, shards=shards) | {
        "first_prompt": first,
        "notes": notes,
        "refused": refused,
        "settings": settings(spec, args),
    }


def not_default(settings: dict[str, Any], model: type[BaseModel] = JobSpec) -> dict[str, Any]:
    """The settings that a spec has to say, or says otherwise than by default.

    Args:
        settings: Of a spec, or of a section of one.
        model: The spec's model, or the section's.
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


def _complete(spec: JobSpec, ledger: Ledger, plan: Plan, *, shards: bool) -> dict[str, Any]:
    """A job that a run would leave as it is: neither its input nor its model is needed any more."""
    whole(ledger)
    report = stored_report(ledger)
    state = OutputState(COMPLETE, plan.rows, report.totals.answered, report.totals.failed)
    return _facts(spec, plan, state, shards=shards) | {
        "first_prompt": None,
        "notes": [],
        "refused": [],
        "settings": report.settings,
    }


def _facts(spec: JobSpec, plan: Plan, state: OutputState, *, shards: bool) -> dict[str, Any]:
    sizes = plan.shard_sizes
    found = {
        "job": spec.name,
        "files": plan.num_files(),
        "bad_files": [problem for _, problem in plan.bad_files()],
        "rows": plan.rows,
        "shards": plan.num_shards,
        "rows_in_a_shard": [int(sizes.min()), int(sizes.max())] if plan.num_shards else [0, 0],
        "output": spec.output.path,
        "output_state": asdict(state),
        "group": plan.group,
    }
    return found | ({"shard_list": _listing(plan)} if shards else {})


def _first(plan: Plan, preparer: Preparer) -> dict[str, Any] | None:
    """The first row of a readable file: its prompt, or the dead letter that it would become."""
    for shard in plan.shards():
        segment = next((segment for segment in shard.segments if segment.problem is None), None)
        if segment is not None:
            work = preparer(Shard(shard.index, (replace(segment, rows=1),)))
            return _shown(work.prompts[0], preparer) if work.prompts else _failed(work.failed[0])
    return None


def _shown(prompt: Prompt, preparer: Preparer) -> dict[str, Any]:
    asked = prompt.page_groups[0] if prompt.reads_page_groups else prompt
    return {
        "row_id": prompt.row_id,
        "tokens": len(asked.token_ids),
        "images": len(asked.images),
        "parts": prompt.requests,
        "text": preparer.tokenizer.show(asked.token_ids),
    }


def _failed(letter: DeadLetter) -> dict[str, Any]:
    return {"row_id": letter.row_id, "step": letter.step, "code": letter.code, "error": letter.message}


def _notes(spec: JobSpec, args: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    room = int(args["max_model_len"]) - int((first or {}).get("tokens", 0))
    if spec.sampling.max_tokens > room:
        return [f"sampling.max_tokens {spec.sampling.max_tokens} is cut to what the context leaves: first row {room}"]
    return []


def _refused(spec: JobSpec, *, left: int) -> list[str]:
    """Why a run would not start on this machine, where another could carry the job out.

    Args:
        spec: The job.
        left: Rows that are not done: without any, no engine starts.
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


def _listing(plan: Plan) -> list[dict[str, Any]]:
    """The shards of a plan, one record each: number, rows, and the files they come from."""
    return [
        {
            "shard": shard.index,
            "rows": shard.rows,
            "files": list(dict.fromkeys(segment.path for segment in shard.segments)),
        }
        for shard in plan.shards()
    ]
