"""`schedule list`: what each schedule of a folder did last, and when it runs next."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from magbatch.errors import JobError, SpecError
from magbatch.jobs.status import status
from magbatch.schedule.folder import spec_files
from magbatch.schedule.history import BEGUN, History
from magbatch.schedule.look import Look, wait_for
from magbatch.schedule.results import one_line
from magbatch.schedule.specs import read
from magbatch.schedule.ticks import due, upcoming
from magbatch.schedule.timing import DEFAULT, Timing
from magbatch.spec import JobSpec, ScheduleSpec

FACTS = ("files", "rows", "failed")


@dataclass(frozen=True, slots=True)
class LastTick:
    """The oldest unfinished tick of a schedule; else its latest tick.

    Attributes:
        tick: The tick (UTC).
        state: `complete`, `empty`, `running` or `interrupted`.
        output: Output of its run.
        facts: Counts of a tick that has ended: `files`, `rows`, `failed`, if its record has them.
    """

    tick: datetime
    state: str
    output: str
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"tick": self.tick.isoformat(), "state": self.state, "output": self.output, **self.facts}


@dataclass(frozen=True, slots=True)
class ListedSchedule:
    """A schedule.

    Attributes:
        spec: File of the spec.
        job: Name of the job.
        output: Output of the schedule.
        cron: Cron expression of the schedule.
        timezone: IANA time zone of the cron expression.
        runs: Ticks so far.
        last: The last tick; None before the first.
        due: Tick that is due now; None if no tick is due.
        next: The next tick; None if there is none in the next 50 years.
    """

    spec: str
    job: str
    output: str
    cron: str
    timezone: str
    runs: int
    last: LastTick | None
    due: datetime | None
    next: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "spec": self.spec, "job": self.job, "output": self.output, "cron": self.cron, "timezone": self.timezone,
            "runs": self.runs, "last": None if self.last is None else self.last.to_dict(),
            "due": None if self.due is None else self.due.isoformat(),
            "next": None if self.next is None else self.next.isoformat(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ListedProblem:
    """Spec that is wrong, or whose output cannot be read.

    Attributes:
        spec: File of the spec.
        problem: Description of the problem, in one line.
    """

    spec: str
    problem: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"spec": self.spec, "problem": self.problem}


def listing(folder: str, now: datetime, timing: Timing = DEFAULT) -> list[ListedSchedule | ListedProblem]:
    """The schedules of a folder, sorted by file name; nothing is written.

    Args:
        folder: Path of the folder.
        now: Current time (UTC).
        timing: Time limits for reading specs and for stores to answer.

    Raises:
        InputError: There is no such folder.
    """
    found = read(spec_files(folder), timing.read_s)
    looks = {
        path: Look(partial(_listed, path, spec, spec.schedule, now), spec.name, timing.late_s)
        for path, spec in found.items()
        if isinstance(spec, JobSpec) and spec.schedule is not None
    }
    wait_for(looks.values(), timing.late_s)
    rows = list[ListedSchedule | ListedProblem]()
    for path, spec in found.items():
        if isinstance(spec, SpecError):
            rows.append(ListedProblem(path, str(spec)))
        elif path in looks:
            rows.append(_result(path, spec, looks[path], timing.late_s))
    return rows


def _result(path: str, spec: JobSpec, look: "Look[ListedSchedule]", late_s: float) -> ListedSchedule | ListedProblem:
    """Schedule that a look at its output found, or the reason why it found none."""
    where = f"{path}: output.path {spec.output.path}"
    if not look.is_over:
        return ListedProblem(path, f"{where}: its store has not answered for {late_s:g} s")
    try:
        return look.result()
    except Exception as error:  # noqa: BLE001 - a job's boundary: one output's error hides no other schedule
        return ListedProblem(path, f"{where}: {one_line(error)}")


def _listed(path: str, spec: JobSpec, schedule: ScheduleSpec, now: datetime) -> ListedSchedule:
    history = History(spec.output.path, quick=True)
    known, seen = history.ticks(), history.seen()
    first = known.open[0] if known.open else known.last
    waiting = due(schedule, max(filter(None, [known.last, seen])), now) if known.last or seen else None
    return ListedSchedule(
        spec=path,
        job=spec.name,
        output=history.output,
        cron=schedule.cron,
        timezone=schedule.timezone,
        runs=len(known.states),
        last=None if first is None else _last(history, first, known.states[first]),
        due=waiting,
        next=upcoming(schedule, now),
    )


def _last(history: History, tick: datetime, state: str) -> LastTick:
    output = history.run_path(tick)
    if state == BEGUN:
        return LastTick(tick, _state_of_run(output), output)
    facts = history.facts(tick, state)
    return LastTick(tick, state, output, {name: facts[name] for name in FACTS if name in facts})


def _state_of_run(output: str) -> str:
    """State of a tick that started and has not ended."""
    try:
        run = status(output).run
    except JobError:  # the tick has no plan yet
        return "interrupted"
    return "running" if run is not None and run.alive else "interrupted"
