"""The board's memory: the reports of every replica and reader of a run.

The board outlives every replica, so the commits and usage of a replica stay counted when it is gone.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from magbatch.errors import ClusterAccessError, DefectError, JobError
from magbatch.fleet.silence import Silence
from magbatch.fleet.slots import SlotTable
from magbatch.pipeline.reading import Deaths, ReadLog
from magbatch.replica.board import Load, Order, Snapshot, Usage
from magbatch.replica.losses import Home, LossReason
from magbatch.totals import Totals
from magbatch.versions import Agreed

MAX_REFUSED_READS = 10  # readers in a row on nodes with other versions, after which no good node seems to be left
MAX_BREAKS = 3  # replicas in a row that end by a defect, while no row is committed


@dataclass(slots=True)
class _Strikes:
    """Deaths of engines, row by row.

    Attributes:
        begun: Indices of shards that a replica has started.
        rows: Shard index to row id to the number of engines that died with the row in flight.
        replicas: Names of replicas whose engine died; each counts once, even if it reports the death twice.
    """

    begun: set[int] = field(default_factory=set)
    rows: dict[int, dict[str, int]] = field(default_factory=dict)
    replicas: set[str] = field(default_factory=set)

    def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        first = shard not in self.begun
        self.begun.add(shard)
        return first, self.rows.get(shard, {})

    def add(self, rows: dict[int, list[str]]) -> None:
        for shard, row_ids in rows.items():
            strikes = self.rows.setdefault(shard, {})
            for row_id in row_ids:
                strikes[row_id] = strikes.get(row_id, 0) + 1


@dataclass(slots=True)
class _Starts:
    """Engines that failed to start since the last one that started.

    Attributes:
        served: Whether any replica has served.
        failed: Number of failures since then.
        error: Message of the first of these failures; None after an engine has started.
        home: Node and log of that engine.
    """

    served: bool = False
    failed: int = 0
    error: str | None = None
    home: Home = field(default_factory=Home)

    def fail(self, message: str, home: Home) -> None:
        if not self.failed:
            self.error, self.home = message, home
        self.failed += 1


@dataclass(slots=True)
class _Versions:
    """The versions of the job, and the nodes that have others.

    Attributes:
        agreed: Package to version, as the driver has them.
        said: Messages about nodes with other versions; each is shown once.
        refused_reads: Readers in a row that ended on such nodes.
    """

    agreed: Agreed = field(default_factory=Agreed)
    said: set[str] = field(default_factory=set)
    refused_reads: int = 0


@dataclass(slots=True)
class _Run:
    """Counts and messages of the whole run.

    Attributes:
        done: Committed rows and tokens.
        starved_s: Seconds, over all replicas, in which an engine had free slots while rows were waiting.
        input_errors: Refusals of the input's storage that were waited out.
        trouble: Number and text of the last message for a person; None before the first.
        failure: Error that stops the job; None while the job runs.
        stopping: Whether replicas are asked to stop.
    """

    done: Totals = field(default_factory=Totals)
    starved_s: float = 0.0
    input_errors: int = 0
    trouble: tuple[int, str] | None = None
    failure: JobError | None = None
    stopping: bool = False


class BoardState:
    """The board's memory, bounded by the shards and slots of one run.

    Args:
        rows: Rows that the run is to answer.
        start_timeout_s: Seconds that an engine may take to start; a replica that starts for longer is lost.
        silence_s: Seconds without a report after which a serving replica is to be ended.
        clock: Function that gives the time in seconds, never going back.
    """

    def __init__(
        self,
        rows: int = 0,
        start_timeout_s: float = math.inf,
        silence_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows, self._clock = rows, clock
        self._slots = SlotTable(start_timeout_s)
        self._silence = Silence(silence_s, clock())
        self._strikes, self._starts, self._versions = _Strikes(), _Starts(), _Versions()
        self._read_log = ReadLog()
        self._broke: tuple[int, int] = (
            -1,
            0,
        )  # rows committed at the last defect, and defects in a row without a new row
        self._run = _Run()

    def differs(self, node: str, found: dict[str, str]) -> str | None:
        """The difference between a node's versions and the job's; None if they agree.

        Args:
            node: Host and address, for people.
            found: Package to version on that node.
        """
        message = self._versions.agreed.take(node, found)
        if message is not None and message not in self._versions.said:
            self._versions.said.add(message)
            self.trouble(message)
        return message

    def refuse_replica(self, replica: str, message: str) -> None:
        """Note that a replica ends on a node with other versions.

        While no replica is up on a node with the right versions, it counts as an engine that did not start.
        """
        if not self._slots.any_up(self._clock()):
            self.engine_failed(replica, message)

    def refuse_reader(self, message: str) -> None:
        """Note that a reader ends on a node with other versions; too many in a row end the job."""
        self._versions.refused_reads += 1
        if self._versions.refused_reads >= MAX_REFUSED_READS:
            self.failed(ClusterAccessError(message))

    def join(self, replica: str, actor: str, home: Home | None = None) -> None:
        """Note that a replica has its devices and starts its engine.

        Args:
            replica: Name of the replica; no two have the same.
            actor: Ray's id of its actor, which stays the same if Ray restarts the actor.
            home: Node and log of its process.
        """
        self._silence.join(replica, actor)
        self._slots.join(replica, actor, home or Home(), self._clock())

    def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """Register an attempt at a shard; see `Board.begin`."""
        return self._strikes.begin(shard)

    def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """Take the rows that a replica is about to start; see `Board.announce`."""
        self._silence.announce(replica, rows)

    def strike(self, replica: str, rows: dict[int, list[str]], reason: LossReason, detail: str) -> None:
        """Strike rows; see `Board.strike`. A replica that lost the reply calls again, but counts once."""
        if replica in self._strikes.replicas:
            return
        self._strikes.replicas.add(replica)
        self._slots.note_loss(replica, reason, detail)
        self._strikes.add(rows)

    def reads(self, shard: int) -> Deaths:
        """Note that a reader starts on a shard; see `ReadLog.begin`."""
        self._versions.refused_reads = 0
        return self._read_log.begin(shard)

    def reads_row(self, shard: int, row_id: str | None) -> None:
        """Note the row that a reader touches; see `ReadLog.row`."""
        self._read_log.row(shard, row_id)

    def has_read(self, shard: int) -> None:
        """Note that a shard is read; see `ReadLog.end`."""
        self._read_log.end(shard)

    def report(
        self,
        replica: str,
        done: Totals,
        use: Usage,
        load: Load,
        rows: dict[int, list[str]] | None = None,
        number: int | None = None,
    ) -> Order:
        """Add a report; see `Board.report`. A repeated report, known by its number, adds nothing."""
        now = self._clock()
        if self._silence.heard(replica, rows or {}, number):
            done, use = Totals(), Usage()
        slot = self._slots.number(replica)
        if slot is None:  # it was silent for so long that another replica has its slot
            slot = self._slots.join(replica, "", Home(), now)
        occupant = self._slots.occupant(replica)
        assert occupant is not None
        if not occupant.serves:
            self._starts.failed, self._starts.error = 0, None
        self._starts.served = True
        self._slots.report(slot, done, use, load, now)
        self._run.done = self._run.done.plus(done)
        to_begin = self._rows - self._run.done.rows - self._slots.rows_at_hand(now)
        if use.short_s and to_begin > 0:
            self._run.starved_s += use.short_s
        return Order.STOP if self._run.stopping else Order.GIVE_BACK if occupant.recalled else Order.NONE

    def engine_failed(self, replica: str, message: str) -> None:
        """Note that an engine did not start, and that its replica ends.

        Args:
            replica: Name of the replica.
            message: Error message of the engine.
        """
        self.left(replica)
        occupant = self._slots.occupant(replica)
        self._starts.fail(message, Home() if occupant is None else occupant.home)

    def trouble(self, message: str) -> None:
        """Keep a message for a person; see `Board.trouble`."""
        self._run.trouble = ((self._run.trouble[0] if self._run.trouble else 0) + 1, message)

    def input_refused(self, message: str) -> None:
        """Note that the input's storage refused, and that the read is tried again."""
        self._run.input_errors += 1
        self.trouble(message)

    def failed(self, error: JobError) -> None:
        """Note the error that stops the job; Ray would pass on only its text."""
        self._run.failure = self._run.failure or error

    def left(self, replica: str, reason: LossReason | None = None, detail: str = "") -> None:
        """Note that a replica ends; see `Board.left`."""
        self._silence.left(replica)
        if reason is not None:
            self._slots.note_loss(replica, reason, detail)
        self._slots.left(replica, self._clock())

    def broke(self, replica: str, cause: str) -> None:
        """Note a defect; see `Board.broke`. MAX_BREAKS defects in a row without a newly committed row end the job."""
        self.left(replica, LossReason.DEFECT, cause)
        rows, breaks = self._broke
        self._broke = self._run.done.rows, breaks + 1 if rows == self._run.done.rows else 1
        if self._broke[1] >= MAX_BREAKS:
            self.failed(
                DefectError(
                    f"{MAX_BREAKS} replicas in a row ended by a defect in magbatch, with no row committed: {cause}"
                )
            )

    def froze(self, replica: str) -> None:
        """Note that a silent replica is ended although its process lives: one of its rows may be the cause."""
        rows = self._silence.rows(replica)
        if rows is not None:
            self.strike(replica, rows, LossReason.SILENT, f"{self._silence.silence_s:.0f} s")
            self.left(replica)

    def stop(self) -> None:
        """Ask every replica to stop, in the reply to its next report."""
        self._run.stopping = True

    def give_back(self, count: int) -> list[str]:
        """Ask replicas to give their devices back, in the reply to their next report.

        Returns:
            Ray's ids of their actors.
        """
        return self._slots.recall(count, self._clock())

    def snapshot(self) -> Snapshot:
        """The state of the run now."""
        now = self._clock()
        return Snapshot(
            done=self._run.done,
            slots=self._slots.shown(now),
            starting=not self._starts.served,
            engine_error=self._starts.error,
            failed_starts=self._starts.failed,
            engine_deaths=len(self._strikes.replicas),
            starved_s=self._run.starved_s,
            input_errors=self._run.input_errors,
            trouble=self._run.trouble,
            failure=self._run.failure,
            silent=self._silence.silent(now),
            versions=dict(self._versions.agreed.versions),
            lost=self._slots.lost,
            losses=list(self._slots.losses),
            failed_home=self._starts.home,
        )
