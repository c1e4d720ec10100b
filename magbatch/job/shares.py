"""How the jobs of a cluster share its devices: by priority, and evenly among jobs of the same.

Ray gives a device to who asks first. So what is shared out here is what jobs hold while one of them waits: those that
hold more than their share give replicas back, one that waits can have them, and who gives back does not ask again
meanwhile. A job keeps its `replicas.min`, whatever the others want. Nothing is shared out as long as nobody waits, so
that jobs fill a cluster, and make its autoscaler add nodes, as if they were alone.

Jobs share with each other if they ask for the same kind of device, on the same nodes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

# Waiting, before another job gives back: an autoscaler may add nodes meanwhile, and an engine's start is dear.
HIGHER_WAITS_S = 15.0
EQUAL_WAITS_S = 300.0
ORDER_S = 60.0  # a replica that is asked for is back by then: it has 25 s to commit
TAKEN_S = 60.0  # and its devices are somebody else's by then
FUTILE_S = (
    1800.0  # else who waits cannot use them, and is given nothing for so long: nodes without its CPUs, for example
)
QUIET_S = 5.0  # a job that has not been heard of for so long is given nothing
FORGET_S = 20.0  # and then it has ended


@dataclass(frozen=True, slots=True)
class Claim:
    """What a job has and wants, as its driver sees it.

    Attributes:
        job: Its name among the jobs of the cluster; no two runs have the same.
        kind: What it shares with others: the device, and the nodes it may be on.
        size: Devices of one replica.
        priority: The higher goes first.
        least: Replicas that it keeps, whatever others want.
        holds: Replicas that have their devices.
        waiting: Replicas that Ray is asked for and has no place for yet.
    """

    job: str
    kind: str
    size: float
    priority: int
    least: int
    holds: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a job is to do.

    Attributes:
        give_back: Replicas that it gives back, beside those that it was told of before.
        cap: Replicas that it may have or ask for; None where it may have what it can get.
    """

    give_back: int = 0
    cap: int | None = None


@dataclass(slots=True)
class _Entry:
    claim: Claim
    came: float
    heard: float
    short: float | None = None  # since when it has waited with less than its share
    not_before: float = -math.inf  # what was given back for it, it could not use
    orders: list[float] = field(default_factory=list)  # when each replica that is on its way back was asked for


def fair(claims: list[Claim], free: float = 0.0) -> dict[str, int]:
    """The replicas that each job should have of what all hold together; earlier claims get what does not come out even.

    Args:
        claims: Of one kind, in the order in which the jobs came.
        free: Devices beside those that they hold.
    """
    devices = free + sum(claim.holds * claim.size for claim in claims)
    wants = {claim.job: claim.holds + claim.waiting for claim in claims}
    shares = dict.fromkeys(wants, 0)

    def fill(among: list[Claim], most: Callable[[Claim], int]) -> None:
        nonlocal devices
        while True:
            able = [one for one in among if shares[one.job] < most(one) and one.size <= devices]
            if not able:
                return
            poorest = min(able, key=lambda one: shares[one.job] * one.size)
            shares[poorest.job] += 1
            devices -= poorest.size

    fill(claims, lambda one: min(one.least, one.holds))
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        fill([claim for claim in claims if claim.priority == priority], lambda one: wants[one.job])
    return shares


class Shares:
    """What the jobs of a cluster claim, and who gives back; all of it is told anew every few seconds.

    Args:
        clock: Seconds, of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._freed: dict[str, list[tuple[float, float]]] = {}  # by kind: when, devices; given back, not taken yet

    def claim(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Take a job's claim, and rule on it.

        Args:
            fields: Of a `Claim`: as a dict, since jobs of several versions may share a cluster.

        Returns:
            The fields of a `Ruling`.
        """
        names = {one.name for one in dataclass_fields(Claim)}
        claim = Claim(**{name: value for name, value in fields.items() if name in names})
        now = self._clock()
        self._entries = {job: one for job, one in self._entries.items() if now - one.heard < FORGET_S}
        entry = self._entries.get(claim.job)
        if entry is None:
            entry = self._entries[claim.job] = _Entry(claim, now, now)
        more = claim.holds - entry.claim.holds
        before = self._freed.get(claim.kind, [])
        freed = [one for one in before if now - one[0] < TAKEN_S]
        if len(freed) < len(before):  # nobody has taken them
            for other in self._entries.values():
                if other.claim.kind == claim.kind and other.short is not None:
                    other.not_before = now + FUTILE_S
        if more > 0:
            entry.not_before = -math.inf
            freed = freed[more:]
        freed += [(now, claim.size)] * min(-more, len(entry.orders))
        self._freed[claim.kind] = freed
        entry.orders = [asked for asked in entry.orders[max(0, -more) :] if now - asked < ORDER_S]
        entry.claim, entry.heard = claim, now
        ruling = self._rule(entry, now)
        return {"give_back": ruling.give_back, "cap": ruling.cap}

    def end(self, job: str) -> None:
        """A job has ended."""
        self._entries.pop(job, None)

    def _rule(self, mine: _Entry, now: float) -> Ruling:
        among = sorted((one for one in self._entries.values() if one.claim.kind == mine.claim.kind), key=_came)
        free = sum(size for _, size in self._freed[mine.claim.kind])
        shares = fair([one.claim for one in among], free)
        for one in among:
            if not one.claim.waiting or one.claim.holds >= shares[one.claim.job]:
                one.short = None
            elif one.short is None:
                one.short = now
        owed = sum(
            min(one.claim.waiting, shares[one.claim.job] - one.claim.holds) * one.claim.size
            for one in among
            if _waits_for(one, mine, now)
        )
        if not owed or mine.claim.holds < shares[mine.claim.job]:
            return Ruling()
        # Who is lower, then who has most above its share, gives back first; what is on its way is counted.
        givers = sorted(
            (one for one in among if one.claim.holds > shares[one.claim.job]),
            key=lambda one: (one.claim.priority, (shares[one.claim.job] - one.claim.holds) * one.claim.size),
        )
        owed -= free + sum(len(one.orders) * one.claim.size for one in givers)
        give = 0
        for one in givers:
            spare = one.claim.holds - shares[one.claim.job] - len(one.orders)
            wanted = max(0, min(spare, -int(-owed // one.claim.size)))
            if one is mine:
                give = wanted
                break
            owed -= wanted * one.claim.size
        mine.orders += [now] * give
        return Ruling(give, max(shares[mine.claim.job], mine.claim.holds - len(mine.orders)))


def _came(entry: _Entry) -> float:
    return entry.came


def _waits_for(one: _Entry, giver: _Entry, now: float) -> bool:
    """Whether a job has been short for long enough for another to give back."""
    if one.short is None or one.claim.priority < giver.claim.priority or now - one.heard > QUIET_S:
        return False
    if now < one.not_before:
        return False
    return now - one.short >= (HIGHER_WAITS_S if one.claim.priority > giver.claim.priority else EQUAL_WAITS_S)
