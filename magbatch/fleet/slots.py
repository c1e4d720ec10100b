"""The numbered slots of a fleet: a replica takes one, and its replacement takes the same one.

So restarts never add metric series, and the work of a replica stays counted in its slot.
"""

import time
from collections import deque
from dataclasses import dataclass, field

from magbatch.replica.board import Load, Slot, State, Usage
from magbatch.replica.losses import MOST_LOSSES, Home, Loss, LossReason
from magbatch.totals import Totals

SILENT_REPLICA_S = 30.0  # time without a report after which a replica does not count as up


@dataclass(slots=True)
class Occupant:
    """The replica that has a slot.

    Attributes:
        name: Name of the replica.
        actor: Ray's id of its actor; empty if the replica has come back after it counted as lost.
        joined: Time at which it joined (s).
        seen: Time of its last report (s).
        home: Node and log of its process.
        serves: Whether its engine has started.
        left: Whether it has ended.
        recalled: Whether it was asked to give its devices back.
        noted: Whether its end is among the losses.
    """

    name: str
    actor: str
    joined: float
    seen: float
    home: Home = field(default_factory=Home)
    serves: bool = False
    left: bool = False
    recalled: bool = False
    noted: bool = False

    def state(self, now: float, start_timeout_s: float) -> State:
        """The state of the replica, judged by its reports."""
        if self.left:
            return State.LOST
        if not self.serves:
            return State.STARTING if now - self.joined < start_timeout_s else State.LOST
        return State.SERVING if now - self.seen < SILENT_REPLICA_S else State.LOST

    def held_s(self, now: float, start_timeout_s: float) -> float:
        """Seconds for which the replica has had its devices; the number never falls.

        A silent replica is counted for SILENT_REPLICA_S more, because the time of its end is unknown.
        """
        if self.left:
            return self.seen - self.joined
        if not self.serves:
            return min(now - self.joined, start_timeout_s)
        return min(now, self.seen + SILENT_REPLICA_S) - self.joined


class SlotTable:
    """The slots of a fleet, and the replicas that were lost.

    Args:
        start_timeout_s: Seconds that an engine may take to start; a replica that starts for longer is lost.

    Attributes:
        lost: Replicas that ended while rows were open.
        losses: Records of the last lost replicas.
    """

    def __init__(self, start_timeout_s: float) -> None:
        self._start_timeout_s = start_timeout_s
        self._slots: list[Slot] = []
        self._occupants: list[Occupant] = []  # occupant of the slot with the same index
        self.lost = 0
        self.losses: deque[Loss] = deque(maxlen=MOST_LOSSES)

    def join(self, replica: str, actor: str, home: Home, now: float) -> int:
        """Give a slot to a replica: the slot of the same actor, else the first whose replica is lost, else a new one.

        Returns:
            The number of the slot.
        """
        number = self._free(actor, now)
        occupant = Occupant(replica, actor, now, now, home)
        if number == len(self._slots):
            self._slots.append(Slot(number))
            self._occupants.append(occupant)
        else:
            before, slot = self._occupants[number], self._slots[number]
            slot.seconds += before.held_s(now, self._start_timeout_s)
            slot.load = Load()
            if actor and before.actor == actor and not before.left:
                self.note_loss(before.name, _unexplained(before.home, home))
            self._occupants[number] = occupant
        self._slots[number].joins += 1
        return number

    def number(self, replica: str) -> int | None:
        """The number of a replica's slot; None if another replica has it."""
        return next((number for number, one in enumerate(self._occupants) if one.name == replica), None)

    def occupant(self, replica: str) -> Occupant | None:
        """The record of a replica; None if another replica has its slot."""
        number = self.number(replica)
        return None if number is None else self._occupants[number]

    def report(self, number: int, done: Totals, usage: Usage, load: Load, now: float) -> Occupant:
        """Add a report to a slot.

        Returns:
            The record of the replica.
        """
        slot, occupant = self._slots[number], self._occupants[number]
        occupant.serves, occupant.seen, occupant.left = True, now, False
        slot.load = load
        slot.done = slot.done.plus(done)
        slot.usage = slot.usage.plus(usage)
        return occupant

    def left(self, replica: str, now: float) -> None:
        """Note that a replica has ended."""
        if (occupant := self.occupant(replica)) is not None:
            occupant.left, occupant.seen = True, now

    def note_loss(self, replica: str, reason: LossReason, detail: str = "") -> None:
        """Note the loss of a replica, once, with the first reason that is heard; see `Loss.of`."""
        number = self.number(replica)
        occupant = None if number is None else self._occupants[number]
        if occupant is not None:
            if occupant.noted:
                return
            occupant.noted = True
        self.lost += 1
        home = Home() if occupant is None else occupant.home
        self.losses.append(Loss.of(time.time(), number or 0, home, reason, detail))

    def recall(self, count: int, now: float) -> list[str]:
        """Mark replicas to be given back, the newest first: they have the fewest rows at hand.

        Returns:
            Ray's ids of their actors.
        """
        able = [one for one in self._occupants if one.actor and not one.recalled and self._serves(one, now)]
        chosen = sorted(able, key=lambda one: -one.joined)[:count]
        for occupant in chosen:
            occupant.recalled = True
        return [occupant.actor for occupant in chosen]

    def any_up(self, now: float) -> bool:
        """Whether a replica serves or starts."""
        return any(one.state(now, self._start_timeout_s) != State.LOST for one in self._occupants)

    def rows_at_hand(self, now: float) -> int:
        """Rows in the engines of serving replicas, or finished there; a lost replica's rows start again."""
        serving = (slot for slot, one in zip(self._slots, self._occupants, strict=True) if self._serves(one, now))
        return sum(slot.load.in_flight + slot.load.finished for slot in serving)

    def shown(self, now: float) -> list[Slot]:
        """A copy of each slot as it is now."""
        shown = []
        for slot, occupant in zip(self._slots, self._occupants, strict=True):
            state = occupant.state(now, self._start_timeout_s)
            load = slot.load if state == State.SERVING else Load()
            seconds = slot.seconds + occupant.held_s(now, self._start_timeout_s)
            shown.append(Slot(slot.number, state, slot.done, slot.usage, load, seconds, slot.joins))
        return shown

    def _serves(self, occupant: Occupant, now: float) -> bool:
        return occupant.state(now, self._start_timeout_s) == State.SERVING

    def _free(self, actor: str, now: float) -> int:
        same = (number for number, one in enumerate(self._occupants) if actor and one.actor == actor)
        gone = (
            number for number, one in enumerate(self._occupants) if one.state(now, self._start_timeout_s) == State.LOST
        )
        return next(same, next(gone, len(self._occupants)))


def _unexplained(before: Home, now: Home) -> LossReason:
    """The reason for the end of a process that said nothing, guessed from its successor's node."""
    if before.node and before.node == now.node:
        return LossReason.KILLED
    return LossReason.NODE_GONE
