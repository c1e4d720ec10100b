"""A run of a schedule: each input file is in exactly one run, whatever is killed at any time.

The order of steps guarantees this. Under the lease of the output:

1. Each tick that started and has not ended gets its plan, and is finished with the files of that plan.
2. The new tick is recorded.
3. The plans of all earlier ticks are read: their files are taken.
4. The plan of the new tick is created. The plan is the claim on its files, and a tick never has two plans.

A run that is killed before step 4 has claimed nothing, and the next run plans the tick again. After step 4, the next
run continues with the same files. A run may stand still while another takes over its lease, then wake up and create a
plan. That is harmless: its tick is recorded, so the other run sees that tick and plans it before any other.
A tick that has its plan and cannot be finished does not stop later ticks.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from magbatch.errors import JobError, ResumableError, SpecError
from magbatch.jobs.opening import holds_rows
from magbatch.jobs.run import RunOutcome, run
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.open import hold
from magbatch.plan.make import make_plan
from magbatch.plan.output_names import are_planned
from magbatch.plan.plan import Plan
from magbatch.schedule.history import BEGUN, COMPLETE, EMPTY, History
from magbatch.schedule.ticks import latest, parse_at
from magbatch.spec import JobSpec, differences

Answer = Callable[[JobSpec, Console, Plan], RunOutcome]


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """Outcome of a tick.

    Attributes:
        tick: The tick (UTC).
        state: `complete`; `empty` if there were no new files; `begun` if it is not complete.
        output: Output of its run.
        files: Input files of its run; None if it is not complete.
        outcome: Outcome of its run; None if the tick had no files, had ended before, or is not complete.
        already: Whether the tick had ended before.
        too_many_failed: Whether more of its rows failed than the spec allowed at that time.
        error: Error that kept the tick from completing; None if it is complete.
    """

    tick: datetime
    state: str
    output: str
    files: int | None
    outcome: RunOutcome | None = None
    already: bool = False
    too_many_failed: bool = False
    error: JobError | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of a command that runs this tick alone."""
        return self.error.exit_code if self.error is not None else int(self.too_many_failed)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        report = {} if self.outcome is None else {"report": self.outcome.report.to_dict()}
        return {
            "tick": self.tick.isoformat(), "state": self.state, "output": self.output, "files": self.files,
            "already": self.already, "too_many_failed": self.too_many_failed, **report,
            **({} if self.error is None else {"error": type(self.error).__name__, "message": str(self.error)}),
        }  # fmt: skip


def _answered(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
    return run(spec, console, frozen=plan)


def chosen(spec: JobSpec, at: str | None) -> datetime:
    """The tick that a command line asks for (UTC).

    Args:
        spec: The job.
        at: Value of `--at`; None for the latest tick of the schedule.

    Raises:
        SpecError: The spec has no schedule, the value is not a past time, or there was no tick yet.
    """
    schedule, now = spec.schedule, datetime.now(UTC)
    if schedule is None:
        raise SpecError("schedule: is missing; add schedule: {cron: 0 6 * * *}, or run the spec once: magbatch run")
    tick = parse_at(at, schedule, now) if at is not None else latest(schedule, now)
    if tick is None:
        raise SpecError(f"schedule.cron: {schedule.cron} had no tick in the last 40 years; name a time with --at")
    return tick


def run_tick(spec: JobSpec, tick: datetime, console: Console, answer: Answer = _answered) -> list[TickOutcome]:
    """Run a tick of a schedule, after earlier ticks that are not complete.

    Args:
        spec: The job, as its file says.
        tick: The tick (UTC).
        console: Console for progress messages.
        answer: Function that completes a run whose plan is frozen.

    Returns:
        Outcome of each tick; the last is that of `tick`.

    Raises:
        LeaseError: Another scheduler works on this output.
        JobError: `tick` cannot be completed; or an earlier tick has no plan and cannot get one, or met an error that
            would stop any tick.
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
            say(f"the run of {one.isoformat()} is not complete and will be tried again at the next tick: {error}")
            return TickOutcome(one, BEGUN, history.run_path(one), files=None, error=error)

    with hold(history.output, say, spec.output.patience_s) as lease:
        before = history.ticks()
        left = deque(one for one in before.open if one != tick)
        for one in left:  # each started tick needs its plan before free files are known
            _frozen_plan(spec, one, history, lease)
        done = list[TickOutcome]()
        while left and all(one.exit_code <= 1 for one in done):
            done.append(attempted(left.popleft(), lease))
        # After a failure, the requested tick comes first: if it fails too, its error must end the command.
        state = before.states.get(tick)
        if state in {COMPLETE, EMPTY}:
            asked = _as_recorded(history, tick, state)
        else:
            history.begin(tick)
            asked = _finish(spec, tick, history, lease, console, answer)
        return [*done, *(attempted(one, lease) for one in left), asked]


def _would_stop_any(error: JobError) -> bool:
    """Whether an error would stop any tick now: an interrupt, or a store or cluster that does not answer."""
    return isinstance(error, ResumableError) and bool(getattr(error, "passing", True))


def _as_recorded(history: History, tick: datetime, state: str) -> TickOutcome:
    """Outcome of a tick that had ended before."""
    facts = history.facts(tick, state)
    return TickOutcome(
        tick, state, history.run_path(tick), facts.get("files", 0), already=True,
        too_many_failed=bool(facts.get("too_many_failed")),
    )  # fmt: skip


def _frozen_plan(spec: JobSpec, tick: datetime, history: History, lease: Lease) -> Plan:
    """Plan of a recorded tick; made and frozen now if it has none."""
    if (plan := history.plan(tick)) is not None:
        return plan
    # Confirmed after the tick was recorded: a run that takes over from here on sees the record, and plans it first.
    lease.confirm()
    taken = history.taken() if spec.input.incremental else None
    made = make_plan(spec, take=None if taken is None else lambda file: (file.name, file.size, file.tag) not in taken)
    return history.claim(tick, made)


def _of_same_files(spec: JobSpec, plan: Plan) -> Plan:
    """New plan for the files of another plan, without files that the spec no longer reads."""
    files = plan.files()
    return make_plan(spec, take=lambda file: (file.name, file.size, file.tag) in files)


def _finish(
    spec: JobSpec, tick: datetime, history: History, lease: Lease, console: Console, answer: Answer
) -> TickOutcome:
    """Complete a recorded tick and record its end."""
    path = history.run_path(tick)
    plan = _frozen_plan(spec, tick, history, lease)
    if not plan.num_shards and spec.input.incremental:
        history.end(tick, EMPTY, files=0, rows=0)
        return TickOutcome(tick, EMPTY, path, 0)
    wanted, plan = _spec_and_plan(spec.with_output(path), plan, console)
    outcome = answer(wanted, console, plan)
    failed = outcome.report.totals.failed
    history.end(
        tick, COMPLETE, files=plan.num_files(), rows=plan.rows, failed=failed, too_many_failed=outcome.too_many_failed
    )
    return TickOutcome(tick, COMPLETE, path, plan.num_files(), outcome, too_many_failed=outcome.too_many_failed)


def _spec_and_plan(wanted: JobSpec, plan: Plan, console: Console) -> tuple[JobSpec, Plan]:
    """Spec and plan with which a tick is completed, even if the spec's file changed after the tick started.

    A run that has answers keeps its spec. A run without answers takes the new spec, with a plan of the same files.

    Args:
        wanted: The job as its file says now, with the output of the tick.
        plan: Frozen plan of the tick.
        console: Console for progress messages.
    """
    ledger = Ledger(wanted.output.path)
    own = ledger.spec()
    changed = differences(own, wanted) if own is not None else []
    if own is not None and changed and not holds_rows(ledger):
        corrected = _of_same_files(wanted, plan)
        if corrected.files() == plan.files():  # the tick's claim stays as it is; else the old spec is kept
            own, plan = None, corrected
    if own is not None and changed:
        listed = ", ".join(line.partition(":")[0] for line in changed)
        console.print(
            f"{ledger.path}: started before the spec changed ({listed}), so it is finished with its own spec",
            markup=False,
        )
        return own, plan
    if own is None and not are_planned(wanted, plan.columns):
        plan = _of_same_files(wanted, plan)  # the spec reads other columns than when the tick was planned
    return wanted, plan
