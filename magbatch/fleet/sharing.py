"""How the jobs of a cluster share its devices: by priority, and evenly among jobs of the same.

Ray gives a device to who asks first. So what is shared out here is what jobs hold while one of them waits: those that
hold more than their share give replicas back, one that waits can have them, and who gives back does not ask again
meanwhile. A job keeps its `replicas.min`, whatever the others want. Nothing is shared out as long as nobody waits, so
that jobs fill a cluster, and make its autoscaler add nodes, as if they were alone.

Jobs share with each other if they ask for the same kind of device, on the same nodes.
"""

import heapq
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Self

from magbatch.spec.sections import MAX_PRIORITY

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
# What one job of a cluster can make of this: a job that errs, or lies, must not take the others' shares down.
MAX_JOBS = 200  # of one kind: more are not shared out, they have what they can get
MAX_CLAIMS = 1000  # of all kinds
MAX_REPLICAS = 10_000  # of one job, in each of its numbers
MIN_SIZE, MAX_SIZE = 0.0001, 10_000.0  # devices of one replica; Ray counts them in such parts
MAX_NAME_CHARS = 4000
STEPS = 8  # for each job one by one, before a level is looked for again: it costs about as much
OWNERS_PRIORITY = "MAGBATCH_MAX_PRIORITY"


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

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """What a job says, checked.

        Args:
            fields: Of a claim: as a dict, since jobs of several versions may share a cluster.

        Raises:
            ValueError: A field is missing, or holds what no job can mean.
        """
        names = {one.name for one in dataclass_fields(cls)}
        if missing := sorted(names - fields.keys()):
            raise ValueError(f"a claim without {', '.join(missing)}")
        counts = {name: _whole(name, fields[name], 0, MAX_REPLICAS) for name in ("least", "holds", "waiting")}
        size = fields["size"]
        if not isinstance(size, int | float) or not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"size of a claim: {size!r:.40} is no number of devices up to {MAX_SIZE:,.0f}")
        for name in ("job", "kind"):
            if not isinstance(fields[name], str) or not 0 < len(fields[name]) <= MAX_NAME_CHARS:
                raise ValueError(f"{name} of a claim: text of 1 to {MAX_NAME_CHARS:,} characters is needed")
        priority = _whole("priority", fields["priority"], -MAX_PRIORITY, MAX_PRIORITY)
        return cls(fields["job"], fields["kind"], float(size), priority, **counts)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number, held to its bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} of a claim: {value!r:.40} is no whole number")
    return max(least, min(most, value))


def owners_priority() -> int:
    """The highest priority that a job of this cluster can have; 0 if what the owner has set is no whole number.

    The owner sets it in the environment of `ray start --head`, whose processes run what shares the cluster out.
    """
    value = os.environ.get(OWNERS_PRIORITY, str(MAX_PRIORITY))
    try:
        return max(-MAX_PRIORITY, min(MAX_PRIORITY, int(value)))
    except ValueError:  # this ends no job: each that has a priority is told that none counts, and by which variable
        return 0


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a job is to do.

    Attributes:
        give_back: Replicas that it gives back, beside those that it was told of before.
        cap: Replicas that it may have or ask for; None where it may have what it can get.
        priority: The one that counts, where that is lower than what the job says; else None.
    """

    give_back: int = 0
    cap: int | None = None
    priority: int | None = None


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
    shares = {claim.job: 0 for claim in claims}
    devices = _fill(shares, {claim.job: min(claim.least, claim.holds) for claim in claims}, claims, devices)
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        among = [claim for claim in claims if claim.priority == priority]
        devices = _fill(shares, {claim.job: claim.holds + claim.waiting for claim in among}, among, devices)
    return shares


def _fill(shares: dict[str, int], most: dict[str, int], among: list[Claim], devices: float) -> float:
    """Give replicas, each to the job that has the fewest devices, until all have their most or nothing fits any more.

    Args:
        shares: Replicas of each job; raised here.
        most: Replicas that each job may have.
        among: Who is given any.
        devices: That are left.

    Returns:
        The devices that are left then.
    """

    there = [one for one in among if shares[one.job] < most[one.job]]
    while there := [one for one in there if one.size <= devices]:
        # Most of it at once, whatever the numbers: all are raised to one level, up to which everything fits.
        level = _level(there, shares, most, devices)
        for one in there:
            raised = _at(level, one, shares, most)
            devices -= (raised - shares[one.job]) * one.size
            shares[one.job] = raised
        there, devices = _poorest_first(shares, most, there, devices)
    return devices


def _poorest_first(
    shares: dict[str, int], most: dict[str, int], among: list[Claim], devices: float
) -> tuple[list[Claim], float]:
    """Some replicas as `_fill` gives them, one by one: who can have more, and the devices that are left."""
    poorest = [(shares[one.job] * one.size, at) for at, one in enumerate(among) if shares[one.job] < most[one.job]]
    heapq.heapify(poorest)
    for _ in range(STEPS * len(among)):
        if not poorest:
            break
        at = poorest[0][1]
        one = among[at]
        fits = one.size <= devices
        if fits:
            shares[one.job] += 1
            devices -= one.size
        if fits and shares[one.job] < most[one.job]:
            heapq.heapreplace(poorest, (shares[one.job] * one.size, at))
        else:
            heapq.heappop(poorest)
    return [among[at] for at in sorted(at for _, at in poorest)], devices


def _level(among: list[Claim], shares: dict[str, int], most: dict[str, int], devices: float) -> float:
    """A level that all jobs can be raised to with `devices` more, each rounded up to a whole replica.

    The cost is counted as if each job below the level had a whole replica beyond it. So it is at most twice the true
    one, and grows with the level in straight pieces: a job begins to cost at what it has, and costs no more from a
    replica below its most on. One pass over these points, sorted, finds where `devices` are used up.
    """
    points = list[tuple[float, float, int]]()  # level, devices that it costs at once, change of the jobs that rise
    for one in among:
        has, full = shares[one.job] * one.size, most[one.job] * one.size
        points += [(has, one.size, 1), (max(has, full - one.size), 0.0, -1)]
    points.sort()
    level, cost, rising = 0.0, 0.0, 0
    for at, more, change in points:
        if cost + rising * (at - level) + more > devices:
            break
        cost += rising * (at - level) + more
        level, rising = at, rising + change
    else:
        return math.inf
    reached = min(at, level + (devices - cost) / rising) if rising > 0 else at
    return reached * (1 - 1e-12)  # rounding takes nothing that is not there


def _at(level: float, one: Claim, shares: dict[str, int], most: dict[str, int]) -> int:
    """Replicas of a job once no replica is to be had by who has fewer devices than `level`."""
    if level == math.inf:
        return most[one.job]
    count = math.ceil(level / one.size)
    if count and (count - 1) * one.size >= level:  # by rounding
        count -= 1
    return max(shares[one.job], min(most[one.job], count))


class Shares:
    """What the jobs of a cluster claim, and who gives back; all of it is told anew every few seconds.

    Args:
        clock: Seconds, of a clock that only goes forward.
        max_priority: The highest that counts; None takes the cluster owner's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_priority: int | None = None) -> None:
        self._clock = clock
        self._max_priority = owners_priority() if max_priority is None else max_priority
        self._entries: dict[str, _Entry] = {}
        # By kind, what was given back and not taken yet: when, replicas, devices of each.
        self._freed: dict[str, list[tuple[float, int, float]]] = {}

    def claim(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Take a job's claim, and rule on it.

        Args:
            fields: As for `Claim.of`.

        Returns:
            The fields of a `Ruling`.

        Raises:
            ValueError: It is no claim.
        """
        claim, now = Claim.of(fields), self._clock()
        lowered = None
        if fields["priority"] > self._max_priority:
            lowered = self._max_priority
            claim = replace(claim, priority=lowered)
        self._forget(now)
        entry = self._entries.get(claim.job)
        if entry is not None and entry.claim.kind != claim.kind:
            del self._entries[claim.job]  # among the jobs of another kind it is a new one
            entry = None
        if entry is None and not self._has_room(claim.kind, now):
            return asdict(Ruling(priority=lowered))
        if entry is None:
            entry = self._entries[claim.job] = _Entry(claim, now, now)
        self._note(entry, claim, now)
        return asdict(replace(self._rule(entry, now), priority=lowered))

    def _has_room(self, kind: str, now: float) -> bool:
        """Whether a new claim can be kept; for it goes the claim, if any, that its job misses least.

        A job that is silent, or neither has nor wants a replica, shares nothing. Nor do the jobs of a kind of which
        one alone has claimed, or none has a replica; they are taken again by their next claims. So a flood of claims
        takes the place of its own oldest ones.
        """
        same = [one for one in self._entries.values() if one.claim.kind == kind]
        if len(same) >= MAX_JOBS:
            spare = [one for one in same if _is_idle(one, now)]
        elif len(self._entries) >= MAX_CLAIMS:
            entries = self._entries.values()
            jobs_of = Counter(one.claim.kind for one in entries)
            shared = {one.claim.kind for one in entries if one.claim.holds and jobs_of[one.claim.kind] > 1}
            spare = [one for one in entries if _is_idle(one, now) or one.claim.kind not in shared]
        else:
            return True
        if not spare:
            return False
        first = min(spare, key=lambda one: (not _is_idle(one, now), one.heard))
        del self._entries[first.claim.job]
        return True

    def _forget(self, now: float) -> None:
        """Jobs that are silent, and devices that nobody has taken."""
        self._entries = {job: one for job, one in self._entries.items() if now - one.heard < FORGET_S}
        for kind, before in list(self._freed.items()):
            freed = [one for one in before if now - one[0] < TAKEN_S]
            if len(freed) < len(before):
                for other in self._entries.values():
                    if other.claim.kind == kind and other.short is not None:
                        other.not_before = now + FUTILE_S
            if freed:
                self._freed[kind] = freed
            else:
                del self._freed[kind]

    def _note(self, entry: _Entry, claim: Claim, now: float) -> None:
        """What has changed since a job's last claim: it took devices, or gave some back."""
        more = claim.holds - entry.claim.holds
        freed = self._freed.pop(claim.kind, [])
        if more > 0:
            entry.not_before = -math.inf
            freed = _without(freed, more)
        if gave := min(-more, len(entry.orders)) if more < 0 else 0:
            freed.append((now, gave, claim.size))
        if freed:
            self._freed[claim.kind] = freed
        entry.orders = [asked for asked in entry.orders[max(0, -more) :] if now - asked < ORDER_S]
        entry.claim, entry.heard = claim, now

    def end(self, job: str) -> None:
        """A job has ended."""
        self._entries.pop(job, None)

    def _rule(self, mine: _Entry, now: float) -> Ruling:
        among = sorted((one for one in self._entries.values() if one.claim.kind == mine.claim.kind), key=_came)
        free = sum(count * size for _, count, size in self._freed.get(mine.claim.kind, []))
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


def _without(freed: list[tuple[float, int, float]], replicas: int) -> list[tuple[float, int, float]]:
    """What is left once so many replicas, the oldest first, are taken."""
    left = list[tuple[float, int, float]]()
    for when, count, size in freed:
        taken = min(count, replicas)
        replicas -= taken
        if count > taken:
            left.append((when, count - taken, size))
    return left


def _is_idle(entry: _Entry, now: float) -> bool:
    return now - entry.heard > QUIET_S or not (entry.claim.holds or entry.claim.waiting)


def _came(entry: _Entry) -> float:
    return entry.came


def _waits_for(one: _Entry, giver: _Entry, now: float) -> bool:
    """Whether a job has been short for long enough for another to give back."""
    if one.short is None or one.claim.priority < giver.claim.priority or now - one.heard > QUIET_S:
        return False
    if now < one.not_before:
        return False
    return now - one.short >= (HIGHER_WAITS_S if one.claim.priority > giver.claim.priority else EQUAL_WAITS_S)
