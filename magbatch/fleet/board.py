"""The memory of the board: what every replica of a run has reported.

The board outlives every replica: what one of them has committed or used stays counted when it is gone.
"""

import math
import time
from collections import deque
from dataclasses import dataclass, field

from magbatch.errors import ClusterAccessError, DefectError, JobError
from magbatch.pipeline.reading import Deaths, ReadLog
from magbatch.replica.board import Load, Order, Slot, Snapshot, State, Usage
from magbatch.replica.losses import MOST_LOSSES, Home, Loss
from magbatch.totals import Totals
from magbatch.versions import Agreed

SILENT_REPLICA_S = 30.0  # a replica that has not reported for so long is not counted as up
MOST_BETWEEN_LOOKS_S = 1.0  # the driver looks a few times a second
MAX_REFUSED_READS = 10  # readers on nodes with other versions, one after the other
MAX_BREAKS = 3  # replicas that end by a defect, one after the other, while no row is committed


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
        if use.short_s and self._rows_to_begin() > 0:
            self._starved_s += use.short_s
        slot.usage = slot.usage.plus(use)
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
            slots.append(Slot(slot.number, state, slot.done, slot.usage, load, seconds, slot.joins))
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
