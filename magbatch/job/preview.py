"""What a job would do: nothing is started and nothing is written."""

from dataclasses import replace
from typing import Any

from magbatch.job.plan import make_plan
from magbatch.job.prepare import Job, Preparer
from magbatch.job.report import settings
from magbatch.job.run import limited
from magbatch.model import engine_args, facts, locate
from magbatch.rows import Prompt, Shard
from magbatch.spec import JobSpec, unchecked


def preview(spec: JobSpec, limit: int | None = None) -> dict[str, Any]:
    """What `plan` shows: nothing is started and nothing is written.

    Raises:
        JobError: As `run` would.
    """
    spec = limited(spec, limit)
    plan = make_plan(spec, limit)
    spec = plan.pinned(spec)
    preparer = Preparer(Job(spec, plan.columns))
    args = engine_args(spec, facts(locate(spec.model, weights=False)), distinct=plan.distinct)
    first: dict[str, Any] | None = None
    for shard in plan.shards():
        segment = next((segment for segment in shard.segments if segment.problem is None), None)
        if segment is None:
            continue
        one = replace(segment, rows=1)
        work = preparer(Shard(shard.index, (one,)))
        first = _shown(work.prompts[0], preparer) if work.prompts else {"error": work.failed[0].message}
        break
    sizes = plan.shard_sizes
    return {
        "job": spec.name,
        "files": plan.num_files(),
        "bad_files": [problem for _, problem in plan.bad_files()],
        "rows": plan.rows,
        "shards": plan.num_shards,
        "rows_in_a_shard": [int(sizes.min()), int(sizes.max())] if plan.num_shards else [0, 0],
        "output": spec.output.path,
        "first_prompt": first,
        "group": plan.group,
        "notes": [*_notes(spec, args, first), *plan.notes, *filter(None, [unchecked(spec.model)])],
        "settings": settings(spec, args),
    }


def _shown(prompt: Prompt, preparer: Preparer) -> dict[str, Any]:
    asked = prompt.parts[0] if prompt.in_parts else prompt
    return {
        "row_id": prompt.row_id,
        "tokens": len(asked.token_ids),
        "images": len(asked.images),
        "parts": prompt.requests,
        "text": preparer.tokenizer.show(asked.token_ids),
    }


def _notes(spec: JobSpec, args: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    room = int(args["max_model_len"]) - int((first or {}).get("tokens", 0))
    if spec.sampling.max_tokens > room:
        return [f"sampling.max_tokens {spec.sampling.max_tokens} is cut to what the context leaves: first row {room}"]
    return []


def listing(spec: JobSpec, limit: int | None = None) -> list[dict[str, Any]]:
    """The shards of a plan, one record each: number, rows, and the files they come from."""
    plan = make_plan(limited(spec, limit), limit)
    return [
        {
            "shard": shard.index,
            "rows": shard.rows,
            "files": list(dict.fromkeys(segment.path for segment in shard.segments)),
        }
        for shard in plan.shards()
    ]
