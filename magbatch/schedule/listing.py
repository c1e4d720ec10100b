"""One line of `schedule list`: what a schedule has done last, and when it runs next."""

from datetime import datetime
from typing import Any

from magbatch.errors import JobError
from magbatch.jobs.status import status
from magbatch.schedule import look as looks
from magbatch.schedule.history import BEGUN, History
from magbatch.schedule.look import Look
from magbatch.schedule.ticks import due, upcoming
from magbatch.spec import JobSpec, ScheduleSpec


def listed(path: str, spec: JobSpec, look: "Look[dict[str, Any]]") -> dict[str, Any]:
    """What a look at a schedule's output has shown, or why it has shown nothing."""
    where = f"{path}: output.path {spec.output.path}"
    if not look.is_over:
        return {"problem": f"{where}: its store has not answered for {looks.LATE_S:g} s"}
    try:
        return look.result()
    except Exception as error:  # noqa: BLE001 - a job's boundary: what is wrong with one output hides no other
        return {"problem": f"{where}: {one_line(error)}"}


def row(spec: JobSpec, schedule: ScheduleSpec, now: datetime) -> dict[str, Any]:
    """What the output of a schedule says; nothing is written."""
    history = History(spec.output.path, quick=True)
    known, seen = history.ticks(), history.seen()
    first = known.open[0] if known.open else known.last
    last: dict[str, Any] | None = None
    if first is not None:
        state = known.states[first]
        facts = history.facts(first, state) if state != BEGUN else {}
        last = {
            "tick": first.isoformat(),
            "state": _standing(history.run_path(first)) if state == BEGUN else state,
            "output": history.run_path(first),
            **{name: facts[name] for name in ("files", "rows", "failed") if name in facts},
        }
    waiting = due(schedule, max(filter(None, [known.last, seen])), now) if known.last or seen else None
    following = upcoming(schedule, now)
    return {
        "job": spec.name, "output": history.output, "cron": schedule.cron, "timezone": schedule.timezone,
        "runs": len(known.states), "last": last, "due": None if waiting is None else waiting.isoformat(),
        "next": None if following is None else following.isoformat(),
    }  # fmt: skip


def _standing(output: str) -> str:
    try:
        found = status(output)["run"]
    except JobError:  # it has no plan yet
        return "interrupted"
    return "running" if found is not None and found["alive"] else "interrupted"


def one_line(error: BaseException) -> str:
    """An error in one line: what is none of a job's names its kind."""
    return str(error) if isinstance(error, JobError) else " ".join(f"{type(error).__name__}: {error}".split())
