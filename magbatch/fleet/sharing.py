"""The sharing of a cluster's devices among its jobs: by priority, and evenly among jobs of one priority.

Ray gives a device to the job that asks first. So jobs share their devices while one of them waits. A job
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

# Time that a job waits before another job gives back: an autoscaler may add nodes first, and engine starts are costly.
HIGHER_WAITS_S = 15.0
EQUAL_WAITS_S = 300.0
ORDER_S = 60.0  # time from an order until the replica is back; it has 25 s to commit
TAKEN_S = 60.0  # time within which freed devices are taken
# Time without orders for a waiting job that did not take freed devices: it cannot use them, for example because those
# nodes have too few CPUs.
FUTILE_S = 1800.0
QUIET_S = 5.0  # time without a claim after which a job is given nothing; jobs claim every second
FORGET_S = 20.0  # time without a claim after which a job counts as ended
# Bounds on memory. Claims beyond them take no part in the sharing: such a job keeps what Ray gives it.
MAX_JOBS = 200  # claims of one kind
MAX_CLAIMS = 1000  # claims of all kinds


@dataclass(slots=True)
class _Entry:
    """A job and its last claim.

    Attributes:
        claim: Last claim of the job.
        came: Time of the first claim (s).
        heard: Time of the last claim (s).
        short: Time at which the job began to wait with less than its share (s); None if it does not wait.
        not_before: Time until which nothing is given back for the job, because it took no freed devices (s).
        orders: Times of the orders for the replicas that are on their way back (s).
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
        at: Time at which they were given back (s).
        replicas: Number of replicas that are still free.
        size: Devices of each replica.
    """

    at: float
    replicas: int
    size: float


class Shares:
    """The claims of a cluster's jobs, and the rulings on them. Jobs repeat their claims, so a restart loses nothing.

    Args:
        clock: Function that gives the time in seconds, never going back.
        max_priority: Highest priority that counts; None takes the limit of the cluster's owner.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_priority: int | None = None) -> None:
        self._clock = clock
        self._max_priority = owners_priority() if max_priority is None else max_priority
        self._entries: dict[str, _Entry] = {}  # job name to entry
        self._freed: dict[str, list[_Freed]] = {}  # kind to freed replicas

    def claim(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Take a job's claim, and rule on it.

        Example: job `low` holds all 8 GPUs, and job `high` wants 4. After 15 s of waiting, `low` must give 4 back:

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
            ValueError: A field of the claim is missing or wrong.
        """
        claim, now = Claim.of(fields), self._clock()
        lowered = None
        if fields["priority"] > self._max_priority:
            lowered = self._max_priority
            claim = replace(claim, priority=lowered)
        self._forget(now)
        entry = self._entries.get(claim.job)
        if entry is not None and entry.claim.kind != claim.kind:
            del self._entries[claim.job]  # a job that changes its kind starts again as a new one
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
        """Whether a new claim can be kept; if full, drop the claim that matters least.

        Three sorts of claims may be dropped: idle jobs, the only job of a kind, and jobs of a kind without replicas.
        Their next claim restores them. So a flood of claims replaces its own oldest claims.
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
        """Note a job's new claim, and the devices that it took or gave back since its last one."""
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
        owed = sum(  # devices that waiting jobs lack and this job must give
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

    Jobs of lower priority give first, then the job that is most above its share. Replicas on their way back count.

    Args:
        asking: Job that has just claimed.
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
    """The freed replicas that are left after some are taken; the oldest are taken first."""
    left = list[_Freed]()
    for one in freed:
        now_taken = min(one.replicas, taken)
        taken -= now_taken
        if one.replicas > now_taken:
            left.append(replace(one, replicas=one.replicas - now_taken))
    return left
