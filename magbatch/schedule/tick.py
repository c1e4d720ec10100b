"""One run of a schedule: no file is in two runs, and none is left out, whatever is killed when.

The order of things makes it so. Under the lease of the output: ticks that were begun and have no end are
finished first, with the files that they have; then the tick is recorded; then what all earlier plans hold is
read; then the tick's own plan is created, which is the claim on its files. Killed before that, nothing is claimed
and the next run plans the tick anew; killed after it, the next run goes on with the same files. A run that stood
still while its lease was taken over may still wake and create a plan; but only of a tick that the other one sees,
and plans before any other, and a tick has one plan. A tick that has its plan and cannot be finished stops no other.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from magbatch.errors import JobError, ResumableError, SpecError
from magbatch.jobs.opening import holds_rows
from magbatch.jobs.run import Outcome, run
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.open import hold
from magbatch.plan.columns import are_planned
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.schedule.history import BEGUN, COMPLETE, EMPTY, History
from magbatch.schedule.ticks import latest, parse_at
from magbatch.spec import JobSpec, differences

Answer = Callable[[JobSpec, Console, Plan], Outcome]


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """What a tick came to.

    Attributes:
        tick: It.
        state: `complete`; or `empty`: there were no new files.
        output: Of its run.
        files: Input files of its run; None of one that is not complete.
        outcome: As `run` gives it; None of one that is empty, or was over before.
        already: It was over before.
        too_many_failed: More of its rows failed than the spec allowed then.
        error: Why it is not complete.
    """

    tick: datetime
    state: str
    output: str
    files: int | None
    outcome: Outcome | None = None
    already: bool = False
    too_many_failed: bool = False
    error: JobError | None = None

    @property
    def exit_code(self) -> int:
        """What a command that ran this tick alone would end with."""
        return self.error.exit_code if self.error is not None else int(self.too_many_failed)

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        report = {} if self.outcome is None else {"report": self.outcome.report}
        return {
            "tick": self.tick.isoformat(), "state": self.state, "output": self.output, "files": self.files,
            "already": self.already, "too_many_failed": self.too_many_failed, **report,
            **({} if self.error is None else {"error": type(self.error).__name__, "message": str(self.error)}),
        }  # fmt: skip


def _answered(spec: JobSpec, console: Console, plan: Plan) -> Outcome:
    return run(spec, console, frozen=plan)


def chosen(spec: JobSpec, at: str | None) -> datetime:
    """The tick that is asked for: at a time that was given, or the latest by the schedule.

    Raises:
        SpecError: The spec has no schedule, the time is none, or there was no tick yet.
    """
    schedule, now = spec.schedule, datetime.now(UTC)
    if schedule is None:
        raise SpecError("schedule: is not set; add schedule: {cron: 0 6 * * *}, or run the spec once: magbatch run")
    tick = parse_at(at, schedule, now) if at is not None else latest(schedule, now)
    if tick is None:
        raise SpecError(f"schedule.cron: {schedule.cron} had no tick in the last 40 years; give one by --at")
    return tick


def run_tick(spec: JobSpec, tick: datetime, console: Console, answer: Answer = _answered) -> list[TickOutcome]:
    """Run a tick of a schedule, after those that were begun and are not complete.

    Args:
        spec: The job, as its file says it.
        tick: Which one.
        console: Where progress goes.
        answer: What completes a run whose plan is frozen.

    Returns:
        What each tick came to, the one that was asked for last.

    Raises:
        LeaseError: Another scheduler works on this output.
        JobError: As its kinds say; of a tick before, if it has no plan, or if what stopped it is of the moment.
    """
    history = History(spec.output.path)

    def say(text: str) -> None:
        console.print(text, markup=False)

    def attempted(one: datetime, lease: Lease) -> TickOutcome:
        try:
            return _finish(spec, one, history, lease, console, answer)
        except JobError as error:
            if _would_stop_any(error):
                raise
            say(f"the run of {one.isoformat()} is not complete, and is tried again at the next tick: {error}")
            return TickOutcome(one, BEGUN, history.run_path(one), files=None, error=error)

    with hold(history.output, say, spec.output.patience_s) as lease:
        before = history.ticks()
        left = deque(one for one in before.open if one != tick)
        for one in left:  # which files are free is known once each tick that was begun has its plan
            _frozen(spec, one, history, lease)
        done = list[TickOutcome]()
        while left and all(one.exit_code <= 1 for one in done):  # else all may fail: the one asked for is to tell
            done.append(attempted(left.popleft(), lease))
        state = before.states.get(tick)
        if state in {COMPLETE, EMPTY}:
            asked = _as_recorded(history, tick, state)
        else:
            history.begin(tick)
            asked = _finish(spec, tick, history, lease, console, answer)
        return [*done, *(attempted(one, lease) for one in left), asked]


def _would_stop_any(error: JobError) -> bool:
    """Whether what stopped a run is of the moment: an interrupt, or a store or cluster that is away."""
    return isinstance(error, ResumableError) and bool(getattr(error, "passing", True))


def _as_recorded(history: History, tick: datetime, state: str) -> TickOutcome:
    facts = history.facts(tick, state)
    return TickOutcome(
        tick, state, history.run_path(tick), facts.get("files", 0), already=True,
        too_many_failed=bool(facts.get("too_many_failed")),
    )  # fmt: skip


def _frozen(spec: JobSpec, tick: datetime, history: History, lease: Lease) -> Plan:
    """The plan of a tick that is recorded; made now where it has none."""
    if (plan := history.plan(tick)) is not None:
        return plan
    lease.confirm()  # after the record: who takes over from here on sees it, and plans it before any other
    taken = history.taken() if spec.input.incremental else None
    made = make_plan(spec, take=None if taken is None else lambda file: (file.name, file.size, file.tag) not in taken)
    return history.claim(tick, made)


def _of_same_files(spec: JobSpec, plan: Plan) -> Plan:
    """A plan of the files of another plan, as far as they are in the input of this spec."""
    files = plan.files()
    return make_plan(spec, take=lambda file: (file.name, file.size, file.tag) in files)


def _finish(
    spec: JobSpec, tick: datetime, history: History, lease: Lease, console: Console, answer: Answer
) -> TickOutcome:
    """Bring a tick that is recorded to its end."""
    path = history.run_path(tick)
    plan = _frozen(spec, tick, history, lease)
    if not plan.num_shards and spec.input.incremental:
        history.end(tick, EMPTY, files=0, rows=0)
        return TickOutcome(tick, EMPTY, path, 0)
    ledger = Ledger(path)
    own = ledger.spec()
    wanted = spec.with_output(path)
    changed = differences(own, wanted) if own is not None else []
    if own is not None and changed and not holds_rows(ledger):
        mended = _of_same_files(wanted, plan)
        if mended.files() == plan.files():  # the tick's claim; a spec that reads other files leaves it as it is
            own, plan = None, mended
    if own is not None and changed:
        listed = ", ".join(line.partition(":")[0] for line in changed)
        console.print(
            f"{path} was begun before the spec changed ({listed}): it is finished as it was begun", markup=False
        )
        wanted = own
    if own is None and not are_planned(wanted, plan.columns):
        # Nothing was asked yet, and the spec was mended since: the same files, with the columns it reads now.
        plan = _of_same_files(wanted, plan)
    outcome = answer(wanted, console, plan)
    history.end(
        tick, COMPLETE, files=plan.num_files(), rows=plan.rows, failed=outcome.report["totals"]["failed"],
        too_many_failed=outcome.too_many_failed,
    )  # fmt: skip
    return TickOutcome(tick, COMPLETE, path, plan.num_files(), outcome, too_many_failed=outcome.too_many_failed)
