"""The board of one run: replicas report to it, and the driver reads it.

The board outlives every replica: its rows and usage stay counted when it is gone. Each replica occupies
a numbered slot. Its replacement reuses the number, so restarts never add metric series.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from magbatch.engines.base import EngineLoad
from magbatch.errors import JobError
from magbatch.replica.losses import Home, Loss, LossReason
from magbatch.totals import Totals, summed

# Upper bounds of the commit time histogram (s), from a local disk (5 ms) to a store that is away for minutes.
COMMIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)
MIN_SILENCE_S, MAX_SILENCE_S = 60.0, 600.0  # bounds of `silence_s`: a healthy replica may be busy for a while


@dataclass(slots=True)
class Load:
    """Load of a replica at one moment.

    Attributes:
        in_flight: Rows inside the engine.
        waiting: Rows in the replica that wait for the engine.
        engine: Load of the engine, as the engine reports it.
        finished: Finished rows that wait for their commit.
    """

    in_flight: int = 0
    waiting: int = 0
    engine: EngineLoad = field(default_factory=EngineLoad)
    finished: int = 0


@dataclass(slots=True)
class Usage:
    """Use of a replica's time and storage since its last report, or a sum of such records.

    Attributes:
        short_s: Seconds in which the engine had free slots. This name is the key in progress.json and report.json.
        preemptions: Sequences that the engine put back because its KV cache was full.
        commits: Objects written.
        commit_ms: Milliseconds spent on writing them, refused tries included.
        commit_bytes: Bytes of the objects.
        commit_retries: Tries that the output's storage refused.
        by_commit: Upper bound of the commit time in seconds (`COMMIT_BOUNDS_S`, or `+Inf`) to number of objects.
    """

    short_s: float = 0.0
    preemptions: int = 0
    commits: int = 0
    commit_ms: int = 0
    commit_bytes: int = 0
    commit_retries: int = 0
    by_commit: dict[str, int] = field(default_factory=dict)

    def plus(self, other: Self) -> Self:
        """The sums of both records."""
        return summed(self, other)


def silence_s(row_timeout_s: float | None) -> float:
    """Seconds without a report after which a replica is ended.

    Args:
        row_timeout_s: The spec's `limits.row_timeout_s`: seconds that a row may go without a token; None for no limit.
    """
    return min(MAX_SILENCE_S, max(MIN_SILENCE_S, row_timeout_s or MAX_SILENCE_S))


class State(StrEnum):
    """State of the replica in a slot. A closed list."""

    STARTING = "starting"
    SERVING = "serving"
    LOST = "lost"  # the replica is silent or gone, and not replaced yet


class Order(StrEnum):
    """Order of the driver to a replica. A closed list."""

    NONE = ""
    STOP = "stop"  # the run ends: commit finished rows
    GIVE_BACK = "give back"  # another job gets the devices


class Board(Protocol):
    """The board, as a replica uses it. It exists for the length of one run."""

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """Register an attempt at a shard.

        Returns:
            Whether this is the run's first attempt at the shard; and row id to strikes, the number of engines that died
            with the row in flight.
        """

    async def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """Announce the rows that the replica has started or is about to start.

        Args:
            replica: Name of the replica on the board.
            rows: Shard to the ids of all such rows; they replace the rows of earlier calls.
        """

    async def strike(self, replica: str, rows: dict[int, list[str]], reason: LossReason, detail: str) -> None:
        """Give a strike to the rows in an engine that died or hangs.

        Args:
            replica: Name of the replica on the board.
            rows: Shard to row ids in flight.
            reason: Reason of the replica's end.
            detail: Duration or error that the reason's sentence names.
        """

    async def report(self, replica: str, done: Totals, usage: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        """Report that the replica is alive.

        Args:
            replica: Name of the replica on the board.
            done: Committed rows since the last report.
            usage: Usage since the last report.
            load: Load at the moment.
            rows: Shard to row ids, as for `announce`.

        Returns:
            An order that the replica must follow.
        """

    async def trouble(self, message: str) -> None:
        """Report a cause that keeps the replica waiting: one line for a person."""

    async def left(self, replica: str, reason: LossReason | None = None) -> None:
        """Report that the replica ends.

        Args:
            replica: Name of the replica on the board.
            reason: Reason if the replica is to be replaced; None if not, or if the board has the reason.
        """

    async def broke(self, replica: str, cause: str) -> None:
        """Report that the replica ends by a defect.

        Args:
            replica: Name of the replica on the board.
            cause: Error in words.
        """


@dataclass(slots=True)
class Slot:
    """A slot of the fleet, and the work of the replicas that occupied it one after the other.

    Attributes:
        number: Number of the slot, from 0.
        state: State of the replica in the slot.
        done: Totals of the rows that its replicas have committed.
        usage: Usage of its replicas, summed.
        load: Load of the serving replica; empty if none serves.
        seconds: Seconds in which replicas occupied the slot, including the starts of their engines.
        joins: Number of replicas that have occupied the slot.
    """

    number: int
    state: State = State.STARTING
    done: Totals = field(default_factory=Totals)
    usage: Usage = field(default_factory=Usage)
    load: Load = field(default_factory=Load)
    seconds: float = 0.0
    joins: int = 0


@dataclass(slots=True)
class Snapshot:
    """The state of a run at one moment.

    Attributes:
        done: Totals of the rows that this run has committed.
        slots: Slots that replicas occupy or have occupied.
        starting: Whether no replica has served yet.
        engine_error: Error of the first engine that failed to start; None if all started.
        failed_starts: Engines that failed to start since the last one that started.
        engine_deaths: Engines that died while rows were in them.
        starved_s: Seconds, over all replicas, in which an engine had free slots while rows were waiting.
        input_errors: Refusals of the input's storage that were waited out.
        trouble: Number and text of the last cause that kept replicas waiting; None if there was none.
        failure: Error that stops the job, from the task or replica that met it first; None while the job runs.
        silent: Name and Ray actor id of each serving replica that has not reported for too long.
        versions: Package to version, the same on all nodes.
        lost: Replicas that ended while rows were left to answer.
        losses: Records of the last lost replicas.
        failed_home: Node and log of the engine that `engine_error` is about.
    """

    done: Totals = field(default_factory=Totals)
    slots: list[Slot] = field(default_factory=list)
    starting: bool = True
    engine_error: str | None = None
    failed_starts: int = 0
    engine_deaths: int = 0
    starved_s: float = 0.0
    input_errors: int = 0
    trouble: tuple[int, str] | None = None
    failure: JobError | None = None
    silent: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    losses: list[Loss] = field(default_factory=list)
    failed_home: Home = field(default_factory=Home)

    def count(self, state: State) -> int:
        """Number of slots in a state."""
        return sum(slot.state == state for slot in self.slots)

    @property
    def replicas(self) -> int:
        """Number of replicas that serve."""
        return self.count(State.SERVING)

    @property
    def restarts(self) -> int:
        """Number of replicas that replaced one that had ended."""
        return sum(max(0, slot.joins - 1) for slot in self.slots)
