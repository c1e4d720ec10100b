"""Where the replicas of one run meet: what they report, and what the driver reads.

The board outlives every replica: what one of them has committed or used stays counted when it is gone. A replica's
place in the fleet has a number, which whoever comes after it takes over, so that a week of restarts makes no more
series of metrics than there are places.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Protocol, Self

from magbatch.engines.base import EngineLoad
from magbatch.errors import ClusterAccessError, DefectError, JobError
from magbatch.pipeline.reading import Deaths, ReadLog
from magbatch.replica.losses import MOST_LOSSES, Home, Loss
from magbatch.totals import Totals
from magbatch.versions import Agreed

SILENT_REPLICA_S = 30.0  # a replica that has not reported for so long is not counted as up
MIN_SILENCE_S, MAX_SILENCE_S = 60.0, 600.0  # until a replica that does not report is ended
MOST_BETWEEN_LOOKS_S = 1.0  # the driver looks a few times a second
MAX_REFUSED_READS = 10  # readers on nodes with other versions, one after the other
MAX_BREAKS = 3  # replicas that end by a defect, one after the other, while no row is committed


@dataclass(slots=True)
class Load:
    """How a replica is at the moment.

    Attributes:
        in_flight: Rows inside the engine.
        waiting: Rows that are at hand and wait for the engine.
        engine: What the engine says of itself.
        finished: Rows that wait for their commit.
    """

    in_flight: int = 0
    waiting: int = 0
    engine: EngineLoad = field(default_factory=EngineLoad)
    finished: int = 0


@dataclass(slots=True)
class Usage:
    """What a replica did beside answering, since it last reported; or the sum of that.

    Attributes:
        idle_slot_s: Seconds in which its engine had free slots.
        preemptions: Sequences that the engine put back for want of KV cache.
        commits: Objects written.
        commit_ms: Milliseconds that this took, tries that were refused included.
        commit_bytes: Bytes of them.
        commit_retries: Tries that the output's storage refused.
        by_commit: Objects by the upper bound of the seconds that each took (`metrics.COMMIT_BOUNDS_S`, or `+Inf`).
    """

    idle_slot_s: float = 0.0
    preemptions: int = 0
    commits: int = 0
    commit_ms: int = 0
    commit_bytes: int = 0
    commit_retries: int = 0
    by_commit: dict[str, int] = field(default_factory=dict)

    def add(self, other: Self) -> None:
        """Add what another one holds."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, dict):
                for key, count in theirs.items():
                    mine[key] = mine.get(key, 0) + count
            else:
                setattr(self, item.name, mine + theirs)


def silence_s(row_timeout_s: float | None) -> float:
    """Seconds without a report after which a replica is ended.

    Args:
        row_timeout_s: The spec's `limits.row_timeout_s`: how long a row may stand still.
    """
    return min(MAX_SILENCE_S, max(MIN_SILENCE_S, row_timeout_s or MAX_SILENCE_S))


class State(StrEnum):
    """Where a replica is. A closed list."""

    STARTING = "starting"
    SERVING = "serving"
    LOST = "lost"  # silent, or gone, and not replaced yet


class Order(StrEnum):
    """What the driver asks of a replica. A closed list."""

    NONE = ""
    STOP = "stop"  # the run ends: what is finished is committed
    GIVE_BACK = "give back"  # another job is to have the devices


class Board(Protocol):
    """The board, as a replica sees it: the driver keeps it, for the length of one run."""

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """Whether this is the run's first attempt at a shard, and the strikes against its rows."""

    async def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """The rows that the replica is at, or about to begin, by shard."""

    async def strike(self, replica: str, rows: dict[int, list[str]], why: str) -> None:
        """The replica's engine died, or hangs, with these rows in flight, by shard; `why` says which in words."""

    async def report(self, replica: str, done: Totals, use: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        """Add to the job's counts; what the replica is asked for. `rows` are those that it is at, by shard."""

    async def trouble(self, message: str) -> None:
        """Something keeps the replica waiting: one line for a person."""

    async def left(self, replica: str, why: str = "") -> None:
        """The replica ends; `why` says in words what has ended it, where another is to take its place."""

    async def broke(self, replica: str, cause: str) -> None:
        """The replica ends by a defect of its own."""


@dataclass(slots=True)
class Slot:
    """One place in the fleet, and what its replicas did one after the other.

    Attributes:
        number: From 0.
        state: Of the replica that has it.
        done: What its replicas have committed.
        use: What they did beside.
        load: How the one that serves is; empty while none does.
        seconds: For which replicas have held it, their engines' starts included.
        joins: Replicas that have had it.
    """

    number: int
    state: State = State.STARTING
    done: Totals = field(default_factory=Totals)
    use: Usage = field(default_factory=Usage)
    load: Load = field(default_factory=Load)
    seconds: float = 0.0
    joins: int = 0


@dataclass(slots=True)
class Snapshot:
    """The state of a run at one moment.

    Attributes:
        done: What this run has committed.
        slots: Of replicas that serve, start, or did so.
        starting: Whether none has served yet.
        engine_error: What the first of the engines that failed to start said; None if all started.
        failed_starts: Engines that failed to start since one did.
        engine_deaths: Engines that died while rows were in them.
        starved_s: Seconds, over all replicas, in which an engine had free slots while rows remained to be begun.
        input_errors: Refusals of the input's storage that were waited out.
        trouble: What keeps replicas waiting, with its number; None while nothing ever did.
        failure: What stops the job, from the task or replica that met it first; None while nothing does.
        silent: Name, and Ray's id of the actor, of each replica that serves and has not reported for too long.
        versions: Package to version, of the nodes.
        lost: Replicas that ended while rows were to be answered.
        losses: The last of these.
        failed_home: Where the engine of `engine_error` was to start.
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
        """Replicas in a state."""
        return sum(slot.state == state for slot in self.slots)

    @property
    def replicas(self) -> int:
        """Replicas that serve."""
        return self.count(State.SERVING)

    @property
    def restarts(self) -> int:
        """Replicas that took the place of one that had ended."""
        return sum(max(0, slot.joins - 1) for slot in self.slots)


@dataclass(slots=True)
class _Occupant:
    """The replica that has a place."""

    name: str
    actor: str
    joined: float
    seen: float
    home: Home = field(default_factory=Home)
    serves: bool = False
    left: bool = False
    recalled: bool = False
    noted: bool = False  # its end is among the losses


@dataclass(slots=True)
class _Answering:
    """A replica that has its devices, whoever has its place.

    Attributes:
        actor: Ray's id of its actor.
        rows: The rows that it is at, by shard.
        serves: Whether its engine has started.
        silent_s: Seconds without a report, as far as the board itself was awake.
        reports: Number of the last report, from 1; 0 before the first.
    """

    actor: str
    rows: dict[int, list[str]] = field(default_factory=dict)
    serves: bool = False
    silent_s: float = 0.0
    reports: int = 0


SnapshotObserver = Callable[
    [Snapshot], JobError | None
]  # an error ends the run with it, once what is finished is committed


class BoardState:
    """The board's memory: small, and bounded by the shards and the places of one run.

    Args:
        rows: That the run is to do.
        start_timeout_s: Seconds that an engine may take to start: a replica that starts for longer is lost.
        silence_s: Seconds without a report after which a replica that serves is to be ended.
    """

    def __init__(self, rows: int = 0, start_timeout_s: float = math.inf, silence_s: float = math.inf) -> None:
        self._rows, self._start_timeout_s, self._silence_s = rows, start_timeout_s, silence_s
        self._answering: dict[str, _Answering] = {}
        self._struck: set[str] = set()
        self._looked = time.monotonic()
        self._broke: tuple[int, int] = (-1, 0)  # rows that were committed then, and how many replicas broke since
        self._done = Totals()
        self._begun: set[int] = set()
        self._strikes: dict[int, dict[str, int]] = {}
        self._read_log = ReadLog()
        self._slots: list[Slot] = []
        self._tenants: list[_Occupant] = []  # of the place with the same index
        self._served = False
        self._engine_error: str | None = None
        self._failed_starts = 0
        self._engine_deaths = 0
        self._lost = 0
        self._losses: deque[Loss] = deque(maxlen=MOST_LOSSES)
        self._failed_home = Home()
        self._starved_s = 0.0
        self._input_errors = 0
        self._trouble: tuple[int, str] | None = None
        self._failure: JobError | None = None
        self._stopping = False
        self._agreed = Agreed()
        self._refused: set[str] = set()  # what was said of nodes with other versions
        self._refused_reads = 0

    def differs(self, node: str, found: dict[str, str]) -> str | None:
        """What is wrong with the versions of a node; None for one that takes part."""
        why = self._agreed.take(node, found)
        if why is not None and why not in self._refused:
            self._refused.add(why)
            self.trouble(why)
        return why

    def refuse_replica(self, replica: str, why: str) -> None:
        """A replica ends on a node with other versions; without any on a right node, it is one that did not start."""
        now = time.monotonic()
        if not any(self._state(one, now) in {State.STARTING, State.SERVING} for one in self._tenants):
            self.engine_failed(replica, why)

    def refuse_reader(self, why: str) -> None:
        """A reader ends on a node with other versions; the job does, where no other is left."""
        self._refused_reads += 1
        if self._refused_reads >= MAX_REFUSED_READS:
            self.failed(ClusterAccessError(why))

    def join(self, replica: str, actor: str, home: Home | None = None) -> None:
        """A replica begins to start its engine.

        Args:
            replica: Its name; no two have the same.
            actor: Ray's id: an actor that Ray starts anew keeps it.
            home: Where it runs.
        """
        now = time.monotonic()
        for other, one in list(self._answering.items()):
            if actor and one.actor == actor:
                del self._answering[other]  # the process before it is gone
        if actor:
            self._answering[replica] = _Answering(actor)
        number = self._free(actor, now)
        tenant = _Occupant(replica, actor, now, now, home or Home())
        if number == len(self._slots):
            self._slots.append(Slot(number))
            self._tenants.append(tenant)
        else:
            self._settle(number, now)
            before = self._tenants[number]
            if actor and before.actor == actor and not before.left:
                self._note_loss(before.name, _without_a_word(before.home, tenant.home))
            self._tenants[number] = tenant
        self._slots[number].joins += 1

    def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """See `Board.begin`."""
        first = shard not in self._begun
        self._begun.add(shard)
        return first, self._strikes.get(shard, {})

    def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """See `Board.announce`."""
        if (one := self._answering.get(replica)) is not None:
            one.rows = rows

    def strike(self, replica: str, rows: dict[int, list[str]], why: str = "its engine died") -> None:
        """See `Board.strike`; a replica that asks again was not heard, and is heard once."""
        if replica in self._struck:
            return
        self._struck.add(replica)
        self._engine_deaths += 1
        self._note_loss(replica, f"{why}; its open rows are asked again")
        for shard, row_ids in rows.items():
            strikes = self._strikes.setdefault(shard, {})
            for row_id in row_ids:
                strikes[row_id] = strikes.get(row_id, 0) + 1

    def reads(self, shard: int) -> Deaths:
        """See `ReadLog.begin`."""
        self._refused_reads = 0
        return self._read_log.begin(shard)

    def reads_row(self, shard: int, row_id: str | None) -> None:
        """See `ReadLog.row`."""
        self._read_log.row(shard, row_id)

    def has_read(self, shard: int) -> None:
        """See `ReadLog.end`."""
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
        """See `Board.report`; a report that was heard already, by its number, counts no second time."""
        now = time.monotonic()
        answering = self._answering.get(replica)
        if answering is not None:
            answering.serves, answering.silent_s, answering.rows = True, 0.0, rows or {}
            if number is not None and number <= answering.reports:
                done, use = Totals(), Usage()
            answering.reports = max(answering.reports, number or 0)
        number = self._number(replica)
        if number is None:  # it was silent for so long that another has its place
            self.join(replica, "")
            number = self._number(replica)
            assert number is not None
        slot, tenant = self._slots[number], self._tenants[number]
        if not tenant.serves:
            self._failed_starts, self._engine_error = 0, None
            tenant.serves = True
        tenant.seen, tenant.left = now, False
        self._served = True
        slot.load = load
        slot.done, self._done = slot.done.plus(done), self._done.plus(done)
        if use.idle_slot_s and self._rows_to_begin() > 0:
            self._starved_s += use.idle_slot_s
        slot.use.add(use)
        return Order.STOP if self._stopping else Order.GIVE_BACK if tenant.recalled else Order.NONE

    def engine_failed(self, replica: str, message: str) -> None:
        """An engine did not start, and its replica ends."""
        self.left(replica)
        if not self._failed_starts:
            self._engine_error = message
            number = self._number(replica)
            self._failed_home = Home() if number is None else self._tenants[number].home
        self._failed_starts += 1

    def trouble(self, message: str) -> None:
        """See `Board.trouble`."""
        self._trouble = ((self._trouble[0] if self._trouble else 0) + 1, message)

    def input_refused(self, message: str) -> None:
        """The input's storage refuses, and is asked again."""
        self._input_errors += 1
        self.trouble(message)

    def failed(self, error: JobError) -> None:
        """A task or a replica met what stops the job; Ray would hand on no more than its text."""
        self._failure = self._failure or error

    def left(self, replica: str, why: str = "") -> None:
        """See `Board.left`."""
        self._answering.pop(replica, None)
        number = self._number(replica)
        if why:
            self._note_loss(replica, why)
        if number is not None:
            self._tenants[number].left = True
            self._tenants[number].seen = time.monotonic()

    def broke(self, replica: str, cause: str) -> None:
        """See `Board.broke`: its place is taken by another; without a row committed meanwhile, not for ever."""
        self.left(replica, f"a defect in magbatch, its log has the traceback: {cause}")
        rows, breaks = self._broke
        self._broke = self._done.rows, breaks + 1 if rows == self._done.rows else 1
        if self._broke[1] >= MAX_BREAKS:
            self.failed(
                DefectError(f"{MAX_BREAKS} replicas ended by a defect in magbatch, and no row was done: {cause}")
            )

    def froze(self, replica: str) -> None:
        """A replica is silent for too long, though its process lives, and is ended: its rows may have done it."""
        answering = self._answering.get(replica)
        if answering is not None:
            self.strike(replica, answering.rows, f"it said nothing for {self._silence_s:.0f} s and was ended")
            self.left(replica)

    def stop(self) -> None:
        """Ask every replica, with its next report, to stop."""
        self._stopping = True

    def give_back(self, count: int) -> list[str]:
        """Ask so many replicas to give their devices back: those that came last have the least at hand.

        Returns:
            Ray's ids of their actors.
        """
        now = time.monotonic()
        able = [
            one for one in self._tenants if one.actor and not one.recalled and self._state(one, now) == State.SERVING
        ]
        chosen = sorted(able, key=lambda one: -one.joined)[:count]
        for tenant in chosen:
            tenant.recalled = True
        return [tenant.actor for tenant in chosen]

    def snapshot(self) -> Snapshot:
        """The state now."""
        now = time.monotonic()
        silent = self._silent(now)
        slots = []
        for slot, tenant in zip(self._slots, self._tenants, strict=True):
            state = self._state(tenant, now)
            load = slot.load if state == State.SERVING else Load()
            seconds = slot.seconds + self._held(tenant, now)
            slots.append(Slot(slot.number, state, slot.done, slot.use, load, seconds, slot.joins))
        return Snapshot(
            self._done, slots, not self._served, self._engine_error, self._failed_starts, self._engine_deaths,
            self._starved_s, self._input_errors, self._trouble, self._failure, silent, dict(self._agreed.versions),
            self._lost, list(self._losses), self._failed_home,
        )  # fmt: skip

    def _note_loss(self, replica: str, why: str) -> None:
        """The end of a replica is noted once, by the first reason that is heard."""
        number = self._number(replica)
        tenant = None if number is None else self._tenants[number]
        if tenant is not None:
            if tenant.noted:
                return
            tenant.noted = True
        self._lost += 1
        home = Home() if tenant is None else tenant.home
        self._losses.append(Loss.of(time.time(), number or 0, home, why))

    def _silent(self, now: float) -> list[tuple[str, str]]:
        # A board that stood still itself, with its node, heard nobody meanwhile: that is no silence of theirs.
        passed = min(now - self._looked, MOST_BETWEEN_LOOKS_S)
        self._looked = now
        for one in self._answering.values():
            one.silent_s += passed
        return [
            (name, one.actor) for name, one in self._answering.items() if one.serves and one.silent_s > self._silence_s
        ]

    def _rows_to_begin(self) -> int:
        """Rows of the run that are neither done, nor in an engine, nor finished and about to be committed."""
        now = time.monotonic()
        serving = (
            slot
            for slot, tenant in zip(self._slots, self._tenants, strict=True)
            if self._state(tenant, now) == State.SERVING  # what a lost one had is to be begun again
        )
        return self._rows - self._done.rows - sum(slot.load.in_flight + slot.load.finished for slot in serving)

    def _number(self, replica: str) -> int | None:
        return next((number for number, tenant in enumerate(self._tenants) if tenant.name == replica), None)

    def _free(self, actor: str, now: float) -> int:
        """The place of the same actor, else the first whose replica is gone, else a new one."""
        same = (number for number, tenant in enumerate(self._tenants) if actor and tenant.actor == actor)
        gone = (number for number, tenant in enumerate(self._tenants) if self._state(tenant, now) == State.LOST)
        return next(same, next(gone, len(self._tenants)))

    def _settle(self, number: int, now: float) -> None:
        """Count the seconds of the replica that had a place."""
        tenant = self._tenants[number]
        self._slots[number].seconds += self._held(tenant, now)
        self._slots[number].load = Load()

    def _held(self, tenant: _Occupant, now: float) -> float:
        """Seconds for which a replica has had its devices, as far as anybody knows; never less than a moment ago."""
        if tenant.left:
            return tenant.seen - tenant.joined
        if not tenant.serves:
            return min(now - tenant.joined, self._start_timeout_s)
        return min(now, tenant.seen + SILENT_REPLICA_S) - tenant.joined

    def _state(self, tenant: _Occupant, now: float) -> State:
        if tenant.left:
            return State.LOST
        if not tenant.serves:
            return State.STARTING if now - tenant.joined < self._start_timeout_s else State.LOST
        return State.SERVING if now - tenant.seen < SILENT_REPLICA_S else State.LOST


def _without_a_word(before: Home, now: Home) -> str:
    """Why a process has ended that said nothing, as far as its successor's place tells."""
    if before.node and before.node == now.node:
        return "its process was killed, as by a kernel that is short of memory; its open rows are asked again"
    return "its process or its node has gone; its open rows are asked again"
