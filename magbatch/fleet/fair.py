"""The fair number of replicas for each job of a cluster."""

import heapq
import math

from magbatch.fleet.claim import Claim

STEPS = 8  # replicas for each job that are given one by one, before the next pass; a pass costs about as much


def fair(claims: list[Claim], free: float = 0.0) -> dict[str, int]:
    """Divide all devices that the jobs hold, and the free ones.

    First each job keeps its `least`. Then priorities get what they want, the highest first. Within a priority, each
    replica goes to the job with the fewest devices; of two with the same number, to the earlier job.

    >>> first = Claim("first", "GPU", size=1.0, priority=0, least=0, holds=3, waiting=2)
    >>> second = Claim("second", "GPU", size=1.0, priority=0, least=0, holds=0, waiting=3)
    >>> fair([first, second])
    {'first': 2, 'second': 1}

    Args:
        claims: Claims of one kind, in the order in which the jobs came.
        free: Devices that no job holds.

    Returns:
        Job name to replicas.
    """
    devices = free + sum(claim.holds * claim.size for claim in claims)
    shares = {claim.job: 0 for claim in claims}
    devices = _fill(shares, {claim.job: min(claim.least, claim.holds) for claim in claims}, claims, devices)
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        peers = [claim for claim in claims if claim.priority == priority]
        devices = _fill(shares, {claim.job: claim.holds + claim.waiting for claim in peers}, peers, devices)
    return shares


def _fill(shares: dict[str, int], most: dict[str, int], claims: list[Claim], devices: float) -> float:
    """Give each replica to the job with the fewest devices, until all jobs have their maximum or nothing fits.

    Args:
        shares: Job name to replicas; raised here.
        most: Job name to the most replicas that it may have.
        claims: Claims of the jobs that are given any.
        devices: Devices to give.

    Returns:
        The devices that are left.
    """
    open_claims = [claim for claim in claims if shares[claim.job] < most[claim.job]]
    while open_claims := [claim for claim in open_claims if claim.size <= devices]:
        # Most replicas are given at once, however many there are: all jobs rise to one level up to which all fits.
        level = _level(open_claims, shares, most, devices)
        for claim in open_claims:
            raised = _replicas_at(level, claim, shares, most)
            devices -= (raised - shares[claim.job]) * claim.size
            shares[claim.job] = raised
        open_claims, devices = _poorest_first(shares, most, open_claims, devices)
    return devices


def _poorest_first(
    shares: dict[str, int], most: dict[str, int], claims: list[Claim], devices: float
) -> tuple[list[Claim], float]:
    """Give some replicas one by one, with the rule of `_fill`.

    Returns:
        The claims of jobs that can have more, and the devices that are left.
    """
    poorest = [
        (shares[claim.job] * claim.size, index)
        for index, claim in enumerate(claims)
        if shares[claim.job] < most[claim.job]
    ]
    heapq.heapify(poorest)
    for _ in range(STEPS * len(claims)):
        if not poorest:
            break
        index = poorest[0][1]
        claim = claims[index]
        fits = claim.size <= devices
        if fits:
            shares[claim.job] += 1
            devices -= claim.size
        if fits and shares[claim.job] < most[claim.job]:
            heapq.heapreplace(poorest, (shares[claim.job] * claim.size, index))
        else:
            heapq.heappop(poorest)
    return [claims[index] for index in sorted(index for _, index in poorest)], devices


def _level(claims: list[Claim], shares: dict[str, int], most: dict[str, int], devices: float) -> float:
    """A number of devices to which all jobs can be raised, each rounded up to a whole replica.

    The cost is counted as if each job below the level got a whole replica more. So it is at most twice the true
    cost, and a piecewise linear function of the level. A job costs nothing below its own devices, and its cost stops
    to grow one replica below its maximum. One pass over these points, sorted, finds the level that uses up `devices`.

    Example: three jobs have nothing, want 100 replicas of size 1 each, and share 90 devices. Each costs 1 at once, then
    as much as the level: 3 + 3 x level = 90. The level is 29; `_poorest_first` gives the last 3 devices.

    Args:
        claims: Claims of the jobs.
        shares: Job name to the replicas that it has been given.
        most: Job name to the most replicas that it may have.
        devices: Devices to give.
    """
    points = list[tuple[float, float, int]]()  # level, devices that it costs at once, change of the jobs that rise
    for claim in claims:
        has, full = shares[claim.job] * claim.size, most[claim.job] * claim.size
        points += [(has, claim.size, 1), (max(has, full - claim.size), 0.0, -1)]
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
    return reached * (1 - 1e-12)  # rounding must not give devices that do not exist


def _replicas_at(level: float, claim: Claim, shares: dict[str, int], most: dict[str, int]) -> int:
    """Replicas of a job once no job with fewer devices than `level` can have another replica."""
    if level == math.inf:
        return most[claim.job]
    count = math.ceil(level / claim.size)
    if count and (count - 1) * claim.size >= level:  # a rounding error
        count -= 1
    return max(shares[claim.job], min(most[claim.job], count))
