"""State of a job, read from any machine: row counts from its objects, the rest from the last record of its run.

A record that says "running" is checked. On the machine of the run, its process must exist. On any other machine, the
record must be younger than `ALIVE_S`.
"""

import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from magbatch.ledger.holder import Holder, holder_of
from magbatch.ledger.layout import retry_output
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import verdict
from magbatch.ledger.manifest import Manifest
from magbatch.plan.plan import Plan
from magbatch.process import process_space, started_at
from magbatch.report.progress import Eta
from magbatch.report.record import ALIVE_S, ProgressRecord, last_record
from magbatch.schema import ERRORS
from magbatch.spec import JobSpec


class JobState(StrEnum):
    """State of a job: a closed list."""

    COMPLETE = "complete"
    STARTING = "starting"  # a run works on the job, and no engine serves yet
    RUNNING = "running"
    ENDED_EARLY = "ended early"  # too many rows failed
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    KILLED = "killed"  # the run's process on this machine is gone, and recorded no end
    LOST = "lost"  # the run was on another machine, and its record is too old
    OPEN = "not complete"  # no run has left a record


ENDED_STATES = {JobState.ENDED_EARLY, JobState.INTERRUPTED, JobState.FAILED}
ALIVE_STATES = {JobState.STARTING, JobState.RUNNING}


@dataclass(frozen=True, slots=True)
class Work:
    """Retry or compaction of a complete job, running now or left unfinished.

    Attributes:
        command: Name of the command and its options, without the output.
        alive: Whether the command runs now.
        host: Host of the command; None if unknown.
        pid: Process id of the command; None if unknown.
    """

    command: tuple[str, ...]
    alive: bool
    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class LastRun:
    """Last record of a job's run.

    Attributes:
        alive: Whether the run is under way. If not, rates and replica counts are 0.
        age_s: Age of the record (seconds).
        host: Host of the run; None if the record does not name it.
        pid: Process id of the run; None if the record does not name it.
        rows_per_s: Rows answered or failed per second.
        tokens_per_s: Tokens generated per second.
        truncated: Answers whose reasoning was truncated.
        serving: Replicas that answer rows.
        starting: Replicas whose engine is starting.
        eta: Time left until the job is complete; None if unknown.
        device_s: Device time of all runs of the job (seconds).
        cost: Cost of that time; None if the spec sets no price.
        currency: Currency of the cost.
        fields: The record as JSON, for programs.
    """

    alive: bool
    age_s: float
    host: str | None
    pid: int | None
    rows_per_s: float
    tokens_per_s: float
    truncated: int
    serving: int
    starting: int
    eta: Eta | None
    device_s: float
    cost: float | None
    currency: str
    fields: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"alive": self.alive, "age_s": self.age_s} | self.fields


@dataclass(frozen=True, slots=True)
class JobStatus:
    """State of a job.

    Attributes:
        job: Name of the job.
        output: Path or URL of its output.
        state: State of the last run: under way, or how it ended.
        complete: Whether the job has a manifest.
        planned: Input rows.
        done: Rows that have an answer or a dead letter.
        answered: Rows with an answer.
        failed: Rows with a dead letter.
        shards: Shards of the plan.
        shards_done: Shards whose rows are all done.
        at: Time when the run ended, or last wrote its record (Unix time, seconds); None if unknown.
        why: Reason why the run ended, as it recorded it. For a complete job: reason for exit code 1.
        exit_code: Exit code of the run that ended; None if unknown.
        work: Retry or compaction that is not finished; None if there is none.
        run: Last record of the run; None if there is none that can be shown.
        command: Command line, after `magbatch`, of the last run if it ran on this machine; else None.
        by_code: Dead letters of a complete job: error code to count.
    """

    job: str
    output: str
    state: JobState
    complete: bool
    planned: int
    done: int
    answered: int
    failed: int
    shards: int
    shards_done: int
    at: float | None
    why: str | None
    exit_code: int | None
    work: Work | None
    run: LastRun | None
    command: tuple[str, ...] | None = None
    by_code: dict[str, int] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether a run works on the job now."""
        return self.state in ALIVE_STATES

    def to_dict(self) -> dict[str, Any]:
        """JSON form. The command of the last run is left out: its paths are valid on this machine only."""
        found = asdict(self) | {"state": str(self.state), "run": None if self.run is None else self.run.to_dict()}
        del found["command"]
        return found


@dataclass(frozen=True, slots=True)
class _Counts:
    """Rows and shards of a job that are done.

    Attributes:
        done: Rows that have an answer or a dead letter.
        failed: Rows with a dead letter.
        shards_done: Shards whose rows are all done.
        by_code: Dead letters of a complete job: error code to count.
    """

    done: int
    failed: int
    shards_done: int
    by_code: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _End:
    """State of the last run. If it ended: when (Unix time, seconds), why, and with which exit code."""

    state: JobState
    at: float | None = None
    why: str | None = None
    exit_code: int | None = None


def status(output: str) -> JobStatus:
    """State of a job: one listing of its objects, and two small records.

    Args:
        output: Path or URL of the output.

    Raises:
        OutputError: The output holds no job.
    """
    ledger = Ledger(output)
    spec, plan = ledger.open_job()
    holder, record, manifest = holder_of(ledger.store), last_record(ledger.store), ledger.manifest()
    if manifest is None:
        counts, end = _open_counts(ledger, plan), _end(record, holder)
    else:
        counts, end = _complete_counts(plan, manifest), _complete_end(spec, plan, manifest, ledger)
    return JobStatus(
        job=spec.name,
        output=ledger.path,
        state=end.state,
        complete=manifest is not None,
        planned=plan.rows,
        done=counts.done,
        answered=counts.done - counts.failed,
        failed=counts.failed,
        shards=plan.num_shards,
        shards_done=counts.shards_done,
        at=end.at,
        why=end.why,
        exit_code=end.exit_code,
        work=None if manifest is None else _work(ledger, manifest, holder),
        run=_last_run(record, end.state),
        command=_started_by(holder),
        by_code=counts.by_code,
    )


def _open_counts(ledger: Ledger, plan: Plan) -> _Counts:
    done = ledger.done_counts(plan)
    failed = sum(name.rows for name in ledger.objects(ERRORS))
    return _Counts(int(done.sum()), failed, int((done >= plan.shard_sizes).sum()))


def _complete_counts(plan: Plan, manifest: Manifest) -> _Counts:
    return _Counts(plan.rows, manifest.totals.failed, plan.num_shards, dict(manifest.totals.by_code))


def _complete_end(spec: JobSpec, plan: Plan, manifest: Manifest, ledger: Ledger) -> _End:
    why = verdict(spec, plan.rows, manifest.totals, ledger)
    return _End(JobState.COMPLETE, why=why, exit_code=0 if why is None else 1)


def _started_by(holder: Holder | None) -> tuple[str, ...] | None:
    if holder is None or not holder.is_here or holder.command[0] != "run" or len(holder.command) == 1:
        return None
    return holder.command


def _is_alive(record: ProgressRecord) -> bool:
    """Whether the run that wrote a record is still under way."""
    if not record.get("running"):
        return False
    if record.get("place") and record["place"] == process_space():
        return bool(record.get("since")) and started_at(record.get("pid", 0)) == record["since"]
    return _age_s(record) < ALIVE_S


def _age_s(record: ProgressRecord) -> float:
    # The clocks of two machines may differ by seconds; ALIVE_S is a minute.
    return max(0.0, time.time() - float(record["at"]))


def _end(record: ProgressRecord | None, holder: Holder | None) -> _End:
    """State of the last run of a job without a manifest.

    Args:
        record: Last record of a run.
        holder: The command that holds the output, or held it last.
    """
    if record is not None and _is_alive(record):
        return _End(JobState.STARTING if record.get("starting") else JobState.RUNNING, record["at"])
    if holder is not None and holder.alive:
        return _End(JobState.STARTING, holder.at)
    # The output was never released, so its holder died.
    died = holder is not None and not holder.released and (holder.at is not None or record is not None)
    if record is None:
        return _gone(holder.at, is_here=holder.is_here) if died and holder is not None else _End(JobState.OPEN)
    end, at = record.get("end"), record["at"]
    # The holder is a later run that was killed before it wrote a record.
    if died and holder is not None and holder.at is not None and holder.pid != record.get("pid") and holder.at > at:
        return _gone(holder.at, is_here=holder.is_here)
    if record.get("running"):
        return _gone(at, is_here=bool(record.get("place")) and record["place"] == process_space())
    if not isinstance(end, dict):  # written by a version that recorded no end
        return _End(JobState.OPEN, at)
    state = end.get("state")
    known = JobState(state) if state in ENDED_STATES else JobState.OPEN
    return _End(known, end.get("at", at), end.get("message") or None, end.get("exit_code"))


def _gone(at: float | None, *, is_here: bool) -> _End:
    return _End(JobState.KILLED if is_here else JobState.LOST, at)


def _work(ledger: Ledger, manifest: Manifest, holder: Holder | None) -> Work | None:
    """Retry or compaction of a complete job, running now or left unfinished."""
    if holder is not None and holder.command[0] in {"retry", "compact"}:
        work = Work(holder.command, holder.alive, holder.host, holder.pid)
        if holder.alive:
            return work
        if holder.command[0] == "compact" and not (holder.released and holder.finished):
            return work
    unfinished = Ledger(retry_output(ledger.path, len(manifest.retries) + 1))
    if unfinished.spec() is None:
        return None
    if holder is not None and holder.command[0] == "retry" and "--drop" not in holder.command:
        return Work(holder.command, alive=False, host=holder.host, pid=holder.pid)
    return Work(("retry",), alive=False)


def _can_be_shown(record: ProgressRecord, state: JobState) -> bool:
    """Whether a record has every field that is shown; records of older versions may lack some."""
    needed = {"replicas", "spent", "cost", "currency"}
    if state != JobState.COMPLETE:
        needed |= {"host", "pid"}
    if state in ALIVE_STATES:
        needed |= {"rows_per_s", "tokens_per_s", "truncated", "eta"}
    return needed <= record.keys()


def _last_run(record: ProgressRecord | None, state: JobState) -> LastRun | None:
    """A run's record as it is shown. A run that is over has no rates, no ETA and no replicas."""
    if record is None or not _can_be_shown(record, state):
        return None
    alive = state in ALIVE_STATES
    last: ProgressRecord = {**record}
    if not alive:
        last |= {"rows_per_s": 0.0, "tokens_per_s": 0.0, "eta": None, "starting": False}
        last["replicas"] = dict.fromkeys(record["replicas"], 0)
    hidden = {"version", "versions", "running", "history", "place", "since", "before", "runs"}
    eta = last["eta"]
    return LastRun(
        alive=alive,
        age_s=_age_s(record),
        host=last.get("host"),
        pid=last.get("pid"),
        rows_per_s=last["rows_per_s"],
        tokens_per_s=last["tokens_per_s"],
        truncated=last.get("truncated", 0),
        serving=last["replicas"].get("serving", 0),
        starting=last["replicas"].get("starting", 0),
        eta=Eta(eta["expected_s"], eta["early_s"], eta["late_s"]) if eta else None,  # a later version may have more
        device_s=last["spent"]["device_s"],
        cost=last["cost"],
        currency=last["currency"],
        fields={name: value for name, value in last.items() if name not in hidden},
    )
