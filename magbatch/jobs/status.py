"""Where a job stands, seen from any machine: from its objects, and from what its run has last said of itself.

A run that says that it goes on is believed on this machine only while its process is there, and on another one for as
long as its last sign of life is young.
"""

import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from magbatch.ledger.holder import Holder, holder_of
from magbatch.ledger.layout import RETRIES
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import verdict
from magbatch.ledger.manifest import Manifest
from magbatch.process import process_space, started_at
from magbatch.report.heartbeat import ALIVE_S, last_record
from magbatch.schema import ERRORS


class JobState(StrEnum):
    """Where a job is. A closed list."""

    COMPLETE = "complete"
    STARTING = "starting"  # a run works on it, and no engine has served yet
    RUNNING = "running"
    ENDED_EARLY = "ended early"  # too many rows failed
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    KILLED = "killed"  # its process is gone, and could not say how it ended
    LOST = "lost"  # it ran on another machine, and gives no sign of life
    OPEN = "not complete"  # no run has said anything


@dataclass(frozen=True, slots=True)
class Work:
    """A retry or a compaction of a complete job that is under way, or was left unfinished.

    Attributes:
        command: Its name and options, without the output.
        alive: It is under way.
        host: Where it runs, or ran; None where nobody knows.
        pid: Its process.
    """

    command: tuple[str, ...]
    alive: bool
    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        job: Its name.
        output: Where it lies.
        state: What its last run does, or how it ended.
        complete: It has a manifest.
        planned: Input rows.
        done: Rows that are answered or dead letters.
        answered: Rows with an answer.
        failed: Dead letters.
        shards: Shards of the plan.
        shards_done: Those of which each row is done.
        at: When the run ended, else its last sign of life (Unix time, s).
        why: What ended it, in its own words; of a complete job, why it is not well.
        exit_code: Of the run that ended.
        work: A retry or compaction that is not finished.
        run: What the run has said last, with its age in seconds and whether it goes on; None where there is nothing.
        command: The command line after `magbatch` that started the last run, where that was on this machine; else None.
        by_code: Dead letters of a complete job, by their code.
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
    run: dict[str, Any] | None
    command: tuple[str, ...] | None = None
    by_code: dict[str, int] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether a run works on it now."""
        return self.state in {JobState.STARTING, JobState.RUNNING}

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        found = asdict(self) | {"state": str(self.state)}
        del found["command"]  # for `next`, of this machine alone
        return found


@dataclass(frozen=True, slots=True)
class _End:
    """How the last run of a job stands: its state, and if it is over when, why and with which code."""

    state: JobState
    at: float | None = None
    why: str | None = None
    exit_code: int | None = None


def status(output: str) -> dict[str, Any]:
    """As `job_status`, for a program."""
    return job_status(output).to_dict()


def job_status(output: str) -> JobStatus:
    """Where a job stands: counts from one listing of its objects, the rest from two small records.

    Raises:
        OutputError: There is no job here.
    """
    ledger = Ledger(output)
    spec, plan = ledger.open_job()
    holder, record, manifest = holder_of(ledger.store), last_record(ledger.store), ledger.manifest()
    if manifest is not None:
        answered, failed, rows_done = manifest.totals.answered, manifest.totals.failed, plan.rows
        shards = plan.num_shards
        why = verdict(spec, plan.rows, manifest.totals, ledger)
        end = _End(JobState.COMPLETE, why=why, exit_code=0 if why is None else 1)
    else:
        done = ledger.done_counts(plan)
        failed = sum(part.rows for part in ledger.objects(ERRORS))
        rows_done = int(done.sum())
        answered = rows_done - failed
        shards = int((done >= plan.shard_sizes).sum())
        end = _end(record, holder)
    alive = end.state in {JobState.STARTING, JobState.RUNNING}
    return JobStatus(
        job=spec.name,
        output=ledger.path,
        state=end.state,
        complete=manifest is not None,
        planned=plan.rows,
        done=rows_done,
        answered=answered,
        failed=failed,
        shards=plan.num_shards,
        shards_done=shards,
        at=end.at,
        why=end.why,
        exit_code=end.exit_code,
        work=None if manifest is None else _work(ledger, manifest, holder),
        run=_shown(record, alive=alive) if record is not None and _can_be_shown(record, end.state) else None,
        command=_started_by(holder),
        by_code={} if manifest is None else dict(manifest.totals.by_code),
    )


def _started_by(holder: Holder | None) -> tuple[str, ...] | None:
    if holder is None or not holder.is_here or holder.command[0] != "run" or len(holder.command) == 1:
        return None
    return holder.command


def _is_alive(record: dict[str, Any]) -> bool:
    if not record.get("running"):
        return False
    if record.get("place") and record["place"] == process_space():
        return bool(record.get("since")) and started_at(record.get("pid", 0)) == record["since"]
    return _age_s(record) < ALIVE_S


def _age_s(record: dict[str, Any]) -> float:
    # The clocks of two machines: near enough to tell life from death.
    return max(0.0, time.time() - float(record["at"]))


def _end(record: dict[str, Any] | None, holder: Holder | None) -> _End:
    """How the last run of a job without a manifest stands."""
    if record is not None and _is_alive(record):
        return _End(JobState.STARTING if record.get("starting") else JobState.RUNNING, record["at"])
    if holder is not None and holder.alive:
        return _End(JobState.STARTING, holder.at)
    left = holder is not None and not holder.released and (holder.at is not None or record is not None)
    if record is None:
        return _gone(holder.at, is_here=holder.is_here) if left and holder is not None else _End(JobState.OPEN)
    end, at = record.get("end"), record["at"]
    # A run that came later, and was killed before it had written a record of its own.
    if left and holder is not None and holder.at is not None and holder.pid != record.get("pid") and holder.at > at:
        return _gone(holder.at, is_here=holder.is_here)
    if record.get("running"):
        return _gone(at, is_here=bool(record.get("place")) and record["place"] == process_space())
    if not isinstance(end, dict):  # of a version that did not say
        return _End(JobState.OPEN, at)
    state = end.get("state")
    known = JobState(state) if state in {JobState.ENDED_EARLY, JobState.INTERRUPTED, JobState.FAILED} else JobState.OPEN
    return _End(known, end.get("at", at), end.get("message") or None, end.get("exit_code"))


def _gone(at: float | None, *, is_here: bool) -> _End:
    return _End(JobState.KILLED if is_here else JobState.LOST, at)


def _work(ledger: Ledger, manifest: Manifest, holder: Holder | None) -> Work | None:
    """The retry or compaction of a complete job that is under way, or is to be gone on with."""
    if holder is not None and holder.command[0] in {"retry", "compact"}:
        work = Work(holder.command, holder.alive, holder.host, holder.pid)
        if holder.alive:
            return work
        if holder.command[0] == "compact" and not (holder.released and holder.finished):
            return work
    begun = Ledger(f"{ledger.path}/{RETRIES}/{len(manifest.retries) + 1:04d}")
    if begun.spec() is None:
        return None
    if holder is not None and holder.command[0] == "retry" and "--drop" not in holder.command:
        return Work(holder.command, alive=False, host=holder.host, pid=holder.pid)
    return Work(("retry",), alive=False)


def _can_be_shown(record: dict[str, Any], state: JobState) -> bool:
    """Whether a record has all that a person is shown of a run; else it is that of another version."""
    needed = {"replicas", "spent", "cost", "currency"}
    if state != JobState.COMPLETE:
        needed |= {"host", "pid"}
    if state in {JobState.STARTING, JobState.RUNNING}:
        needed |= {"rows_per_s", "tokens_per_s", "truncated", "eta"}
    return needed <= record.keys()


def _shown(record: dict[str, Any], *, alive: bool) -> dict[str, Any]:
    """A run's record for a program; a run that is over has no speed, no end to come and no replicas."""
    hidden = {"version", "versions", "running", "history", "place", "since", "before", "runs"}
    shown = {name: value for name, value in record.items() if name not in hidden}
    over = {"rows_per_s": 0.0, "tokens_per_s": 0.0, "eta": None, "starting": False}
    none = {"replicas": dict.fromkeys(record.get("replicas", {}), 0)}
    return {"alive": alive, "age_s": _age_s(record)} | shown | ({} if alive else over | none)
