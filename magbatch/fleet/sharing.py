"""The sharing of a cluster's devices among its jobs: by priority, and evenly among jobs of one priority.

Ray gives a device to the job that asks first. So jobs share what they hold while one of them waits. A job
that holds more than its share gives replicas back, and does not ask for them again while the other job waits. A job
keeps its `replicas.min`. While no job waits, nothing is shared: jobs fill a cluster, and make its autoscaler add nodes,
as if they were alone. Jobs share with each other if they ask for the same kind of device on the same nodes.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from magbatch.fleet.claim import Claim, Ruling, owners_priority
from magbatch.fleet.fair import fair

# A job waits so long before another job gives back: an autoscaler may add nodes first, and an engine's start is costly.
HIGHER_WAITS_S = 15.0
EQUAL_WAITS_S = 300.0
ORDER_S = 60.0  # a replica is back so long after its order: it has 25 s to commit
TAKEN_S = 60.0  # freed devices are taken by then
# If freed devices are not taken, the waiting job cannot use them: too few CPUs on those nodes, for example. Nothing is
# then given back for it for so long.
FUTILE_S = 1800.0
QUIET_S = 5.0  # a job without a claim for so long is given nothing; jobs claim every second
FORGET_S = 20.0  # a job without a claim for so long has ended
# Bounds on memory: claims beyond them are not shared out, and such a job has what it can get.
MAX_JOBS = 200  # of one kind
MAX_CLAIMS = 1000  # of all kinds


@dataclass(slots=True)
class _Entry:
    """A job and its last claim.

    Attributes:
        claim: The last claim.
        came: Time of the first claim (s).
        heard: Time of the last claim (s).
        short: Time since when the job waits with less than its share (s); None if it does not.
        not_before: Time until which nothing is given back for the job: it could not use what was (s).
        orders: Time of the order for each replica that is on its way back (s).
    """

    claim: Claim
    came: float
    heard: float
    short: float | None = None
    not_before: float = -math.inf
    orders: list[float] = field(default_factory=list)

    def is_idle(self, now: float) -> bool:
        """Whether the job is silent, or neither has nor wants a replica."""
        return now - self.heard > QUIET_S or not (self.claim.holds or self.claim.waiting)

    def may_take_from(self, giver: "_Entry", now: float) -> bool:
        """Whether the job has been short for long enough that `giver` has to give back."""
        if self.short is None or self.claim.priority < giver.claim.priority or now - self.heard > QUIET_S:
            return False
        if now < self.not_before:
            return False
        return now - self.short >= (HIGHER_WAITS_S if self.claim.priority > giver.claim.priority else EQUAL_WAITS_S)


@dataclass(frozen=True, slots=True)
class _Freed:
    """Replicas that a job has given back and no job has taken yet.

    Attributes:
        at: Time when they were given back (s).
        replicas: The number of replicas.
        size: Devices of each replica.
    """

    at: float
    replicas: int
    size: float


class Shares:
    """The claims of a cluster's jobs, and the rulings on them. Jobs repeat their claims, so a restart loses nothing.

    Args:
        clock: Gives the time in seconds, never going back.
        max_priority: Highest priority that counts; None takes the cluster owner's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_priority: int | None = None) -> None:
        self._clock = clock
        self._max_priority = owners_priority() if max_priority is None else max_priority
        self._entries: dict[str, _Entry] = {}  # by job
        self._freed: dict[str, list[_Freed]] = {}  # by kind

    def claim(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Take a job's claim, and rule on it.

        Job `low` holds all 8 GPUs, and job `high` wants 4. `high` waits 15 s; then `low` is to give 4 back:

        >>> seconds = 0.0
        >>> shares = Shares(lambda: seconds, max_priority=10)
        >>> low = {"job": "low", "kind": "GPU", "size": 1.0, "priority": 0, "least": 0, "holds": 8, "waiting": 0}
        >>> high = low | {"job": "high", "priority": 5, "holds": 0, "waiting": 4}
        >>> _ = shares.claim(low), shares.claim(high)
        >>> seconds = 16.0
        >>> shares.claim(high)
        {'give_back': 0, 'cap': None, 'priority': None}
        >>> shares.claim(low)
        {'give_back': 4, 'cap': 4, 'priority': None}

        The next ruling repeats the cap and orders nothing more, since 4 are on their way:

        >>> shares.claim(low)
        {'give_back': 0, 'cap': 4, 'priority': None}

        Args:
            fields: Values of `Claim.of`.

        Returns:
            The fields of a `Ruling`.

        Raises:
            ValueError: The fields are not a claim's.
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

    def end(self, job: str) -> None:
        """Forget a job that has ended.

        Args:
            job: Name of the job.
        """
        self._entries.pop(job, None)

    def _has_room(self, kind: str, now: float) -> bool:
        """Whether a new claim can be kept; the claim that its job misses least may go for it.

        Idle jobs share nothing. Nor do the jobs of a kind that one job alone has claimed, or of which no job has a
        replica; their next claims bring them back. So a flood of claims replaces its own oldest claims.
        """
        same_kind = [entry for entry in self._entries.values() if entry.claim.kind == kind]
        if len(same_kind) >= MAX_JOBS:
            spare = [entry for entry in same_kind if entry.is_idle(now)]
        elif len(self._entries) >= MAX_CLAIMS:
            entries = self._entries.values()
            jobs_of = Counter(entry.claim.kind for entry in entries)
            shared = {entry.claim.kind for entry in entries if entry.claim.holds and jobs_of[entry.claim.kind] > 1}
            spare = [entry for entry in entries if entry.is_idle(now) or entry.claim.kind not in shared]
        else:
            return True
        if not spare:
            return False
        first = min(spare, key=lambda entry: (not entry.is_idle(now), entry.heard))
        del self._entries[first.claim.job]
        return True

    def _forget(self, now: float) -> None:
        """Drop silent jobs, and freed devices that no job has taken."""
        self._entries = {job: entry for job, entry in self._entries.items() if now - entry.heard < FORGET_S}
        for kind, before in list(self._freed.items()):
            freed = [one for one in before if now - one.at < TAKEN_S]
            if len(freed) < len(before):
                for entry in self._entries.values():
                    if entry.claim.kind == kind and entry.short is not None:
                        entry.not_before = now + FUTILE_S
            if freed:
                self._freed[kind] = freed
            else:
                del self._freed[kind]

    def _note(self, entry: _Entry, claim: Claim, now: float) -> None:
        """Note what has changed since a job's last claim: it took devices, or gave some back."""
        gained = claim.holds - entry.claim.holds
        freed = self._freed.pop(claim.kind, [])
        if gained > 0:
            entry.not_before = -math.inf
            freed = _without(freed, gained)
        given = min(-gained, len(entry.orders)) if gained < 0 else 0
        if given:
            freed.append(_Freed(now, given, claim.size))
        if freed:
            self._freed[claim.kind] = freed
        entry.orders = [ordered for ordered in entry.orders[max(0, -gained) :] if now - ordered < ORDER_S]
        entry.claim, entry.heard = claim, now

    def _rule(self, asking: _Entry, now: float) -> Ruling:
        """Rule on the job that has just claimed, among the jobs of its kind."""
        kind = asking.claim.kind
        entries = sorted((one for one in self._entries.values() if one.claim.kind == kind), key=lambda one: one.came)
        free = sum(one.replicas * one.size for one in self._freed.get(kind, []))
        shares = fair([entry.claim for entry in entries], free)
        for entry in entries:
            if not entry.claim.waiting or entry.claim.holds >= shares[entry.claim.job]:
                entry.short = None
            elif entry.short is None:
                entry.short = now
        owed = sum(  # devices
            min(entry.claim.waiting, shares[entry.claim.job] - entry.claim.holds) * entry.claim.size
            for entry in entries
            if entry.may_take_from(asking, now)
        )
        share = shares[asking.claim.job]
        if not owed or asking.claim.holds < share:
            return Ruling()
        give_back = _to_give_back(asking, entries, shares, owed - free)
        asking.orders += [now] * give_back
        return Ruling(give_back, max(share, asking.claim.holds - len(asking.orders)))


def _to_give_back(asking: _Entry, entries: list[_Entry], shares: dict[str, int], owed: float) -> int:
    """Replicas that the asking job gives back now.

    Jobs of lower priority give first, then the job with most above its share. What is on its way back counts as given.

    Args:
        asking: The asking job.
        entries: All jobs of its kind.
        shares: Job name to its fair replicas.
        owed: Devices that waiting jobs lack.
    """
    givers = sorted(
        (entry for entry in entries if entry.claim.holds > shares[entry.claim.job]),
        key=lambda entry: (
            entry.claim.priority,
            (shares[entry.claim.job] - entry.claim.holds) * entry.claim.size,
        ),
    )
    owed -= sum(len(entry.orders) * entry.claim.size for entry in givers)
    for entry in givers:
        spare = entry.claim.holds - shares[entry.claim.job] - len(entry.orders)
        given = max(0, min(spare, -int(-owed // entry.claim.size)))
        if entry is asking:
            return given
        owed -= given * entry.claim.size
    return 0


def _without(freed: list[_Freed], taken: int) -> list[_Freed]:
    """The freed replicas that are left once some are taken, the oldest first."""
    left = list[_Freed]()
    for one in freed:
        now_taken = min(one.replicas, taken)
        taken -= now_taken
        if one.replicas > now_taken:
            left.append(replace(one, replicas=one.replicas - now_taken))
    return left
