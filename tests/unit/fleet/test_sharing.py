"""Jobs share a cluster by priority, evenly within one, nobody below its min; nothing moves while nobody waits."""

import doctest
import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from magbatch.fleet import sharing
from magbatch.fleet.claim import MIN_SIZE, OWNERS_PRIORITY, Claim, Ruling
from magbatch.fleet.sharing import EQUAL_WAITS_S, HIGHER_WAITS_S, MAX_CLAIMS, MAX_JOBS, Shares

START_S, COMMIT_S = 5, 20  # of a replica: from its devices to its first word; from the order to go until it is gone


def claim(job: str, holds: int, waiting: int = 0, **other: Any) -> Claim:
    return Claim(
        **{"job": job, "kind": "GPU", "size": 1.0, "priority": 0, "least": 0} | other, holds=holds, waiting=waiting
    )


@dataclass
class Job:
    """A job as Ray and its driver have it."""

    name: str
    most: int
    other: dict[str, Any] = field(default_factory=dict)
    holds: int = 0
    going: list[int] = field(default_factory=list)  # when each replica that was told to go is gone
    cap: int | None = None
    starts: int = 0
    fits: bool = True  # on the nodes that there are


class Sim:
    """A cluster of so many devices: the job that asks first gets them, as with Ray. A second is a step."""

    def __init__(self, devices: int) -> None:
        self.devices, self.now = devices, 0
        self.shares = Shares(lambda: float(self.now))
        self.jobs: list[Job] = []
        self.queue: deque[Job] = deque()  # one entry for each replica that waits
        self.starting: list[tuple[int, Job]] = []

    def add(self, name: str, most: int, **other: Any) -> Job:
        self.jobs.append(Job(name, most, other))
        return self.jobs[-1]

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            for job in self.jobs:
                gone = [when for when in job.going if when <= self.now]
                job.going = [when for when in job.going if when > self.now]
                job.holds -= len(gone)
                self.devices += len(gone)
                waiting = self.queue.count(job) + sum(one is job for _, one in self.starting)
                bound = job.most if job.cap is None else min(job.most, job.cap)
                self.queue.extend([job] * max(0, bound - job.holds - waiting))  # the pool grows up to its bound
                while job.cap is not None and job.holds + self.queue.count(job) > job.cap and job in self.queue:
                    self.queue.remove(job)  # the pool takes back what waits
            for job in [one for one in self.queue if one.fits][: self.devices]:
                self.devices -= 1
                self.queue.remove(job)
                self.starting.append((self.now + START_S, job))
            for when, job in list(self.starting):
                if when <= self.now:
                    self.starting.remove((when, job))
                    job.holds += 1
                    job.starts += 1
            for job in self.jobs:
                waiting = self.queue.count(job) + sum(one is job for _, one in self.starting)
                told = self.shares.claim(asdict(claim(job.name, job.holds, waiting, **job.other)))
                job.cap = told["cap"]
                job.going += [self.now + COMMIT_S] * told["give_back"]

    def end(self, job: Job) -> None:
        self.jobs.remove(job)
        self.shares.end(job.name)
        self.devices += job.holds + sum(one is job for _, one in self.starting)
        self.starting = [(when, one) for when, one in self.starting if one is not job]
        self.queue = deque(one for one in self.queue if one is not job)


def test_a_higher_job_has_its_replicas_soon_and_the_lower_has_them_back_after() -> None:
    cluster = Sim(8)
    low = cluster.add("low", 20, least=1)
    cluster.run(60)
    high = cluster.add("high", 5, priority=10)
    cluster.run(int(HIGHER_WAITS_S) - 2)
    assert (low.holds, high.holds, low.going) == (8, 0, []), "not at once: a node may be on its way"
    cluster.run(2 + COMMIT_S + START_S + 5)
    assert (low.holds, high.holds) == (3, 5)
    cluster.run(600)
    assert (low.holds, high.holds) == (3, 5)
    assert (low.starts, high.starts) == (8, 5), "no replica was started in vain"
    cluster.end(high)
    cluster.run(60)
    assert low.holds == 8


def test_equals_share_evenly_after_a_while() -> None:
    cluster = Sim(9)
    jobs = [cluster.add("first", 20)]
    cluster.run(60)
    jobs += [cluster.add("second", 20), cluster.add("third", 20)]
    cluster.run(int(EQUAL_WAITS_S) - 10)
    assert [job.holds for job in jobs] == [9, 0, 0], "the autoscaler has its time"
    cluster.run(400)
    assert [job.holds for job in jobs] == [3, 3, 3]
    starts = [job.starts for job in jobs]
    cluster.run(2 * int(EQUAL_WAITS_S) + 100)
    assert [job.holds for job in jobs] == [3, 3, 3]
    assert [job.starts for job in jobs] == starts, "and then nothing moves"


def test_nobody_gives_back_while_nobody_waits_for_long() -> None:
    cluster = Sim(4)
    first = cluster.add("first", 3)
    second = cluster.add("second", 1, priority=5)
    cluster.run(1000)
    assert (first.holds, second.holds, first.cap, first.starts) == (3, 1, None, 3)


def test_what_grows_with_the_cluster_is_not_held_back() -> None:
    """The autoscaler must see that two jobs wait for nodes."""
    cluster = Sim(2)
    first, second = cluster.add("first", 8), cluster.add("second", 8)
    cluster.run(1000)
    assert (first.cap, second.cap) == (None, None)
    assert cluster.queue.count(first) + first.holds == 8
    cluster.devices += 14
    cluster.run(30)
    assert (first.holds, second.holds) == (8, 8)


def test_jobs_on_other_nodes_have_nothing_to_do_with_it() -> None:
    cluster = Sim(2)
    first = cluster.add("first", 2, kind="GPU of H100")
    cluster.run(30)
    cluster.add("second", 2, kind="GPU of A100", priority=9)
    cluster.run(1000)
    assert (first.holds, first.cap) == (2, None)


def test_a_silent_job_has_no_claim() -> None:
    cluster = Sim(2)
    first = cluster.add("first", 2)
    cluster.run(30)
    gone = cluster.add("gone", 2, priority=9)
    cluster.run(5)
    cluster.jobs.remove(gone)  # killed: it says no word
    cluster.queue = deque(job for job in cluster.queue if job is not gone)
    cluster.run(200)
    assert (first.holds, first.starts) == (2, 2)


def test_a_job_that_cannot_use_freed_devices_is_given_none_for_a_while() -> None:
    cluster = Sim(8)
    low = cluster.add("low", 8)
    cluster.run(60)
    high = cluster.add("high", 1, priority=9, size=4.0)
    high.fits = False  # the nodes lack its CPUs
    cluster.run(1800)
    assert low.holds == 8
    assert low.starts <= 8 + 4, "once is a try"
    high.fits = True


def test_a_claim_of_another_version_is_understood() -> None:
    shares = Shares()
    assert shares.claim(asdict(claim("a", 1)) | {"of_tomorrow": 1}) == asdict(Ruling())


def test_claims_beyond_measure_are_held_to_bounds() -> None:
    shares = Shares(lambda: 0.0, max_priority=10)
    for number in range(MAX_JOBS + 50):
        shares.claim(asdict(claim(f"job-{number}", 3 * 10**7, 3 * 10**7, least=10**9, priority=10**9)))
    for number in range(MAX_JOBS // 2):  # and of sizes that have little in common
        shares.claim(asdict(claim(f"job-{number}", 0, 3 * 10**7, size=MIN_SIZE * (number + 1), priority=10**9)))
    told = shares.claim(asdict(claim("job-0", 3 * 10**7, priority=10**9)))
    assert told["priority"] == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": float("nan")},
        {"size": float("inf")},
        {"size": 0},
        {"size": -1.0},
        {"size": "1"},
        {"holds": 1.5},
        {"waiting": "9"},
        {"priority": None},
        {"priority": True},
        {"job": ""},
        {"job": "x" * 5000},
        {"kind": ["GPU"]},
    ],
    ids=str,
)
def test_a_wrong_claim_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    shares = Shares(lambda: 0.0)
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} of a claim"):
        shares.claim(asdict(claim("a", 1)) | wrong)
    with pytest.raises(ValueError, match="claim: holds missing"):
        shares.claim({name: value for name, value in asdict(claim("a", 1)).items() if name != "holds"})
    assert shares.claim(asdict(claim("b", 1))) == asdict(Ruling())


def test_a_priority_above_the_owners_counts_as_the_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNERS_PRIORITY, "5")
    cluster = Sim(4)
    first = cluster.add("first", 4, priority=5)
    cluster.run(30)
    greedy = cluster.add("greedy", 4, priority=100)
    cluster.run(int(EQUAL_WAITS_S) - 10)
    assert (first.holds, greedy.holds) == (4, 0), "to the cluster they are equal"
    monkeypatch.setenv(OWNERS_PRIORITY, "lots")
    told = Shares().claim(asdict(claim("a", 1, priority=1)))
    assert told["priority"] == 0, "no priority counts until the owner's is a number"


def test_what_jobs_leave_behind_is_forgotten() -> None:
    now = 0.0
    shares = Shares(lambda: now)
    for number in range(10):  # jobs that are told to give back, and do, each of a kind of its own
        kind = f"kind {number}"
        for _ in range(40):
            now += 1
            low = shares.claim(asdict(claim(f"low {number}", 2, kind=kind)))
            shares.claim(asdict(claim(f"high {number}", 0, 2, kind=kind, priority=9)))
            if low["give_back"]:
                shares.claim(asdict(claim(f"low {number}", 0, kind=kind)))
                break
        else:
            pytest.fail("nothing was given back")
    now += 1000
    fresh = Shares(lambda: now)
    for one in (shares, fresh):
        one.claim(asdict(claim("new", 1)))
    assert vars(shares) | {"_clock": None} == vars(fresh) | {"_clock": None}


def _pair(shares: Shares, tell: Callable[[int], None], seconds: int) -> dict[str, Any]:
    """The last ruling on a job that has all devices, while a job of higher priority waits and more jobs claim."""
    for second in range(0, seconds, 5):
        tell(second)
        told = shares.claim(asdict(claim("honest", 8)))
        shares.claim(asdict(claim("second", 0, 4, priority=5)))
    return told


def _other_kinds(shares: Shares, second: int) -> None:
    for number in range(MAX_JOBS + 50):
        shares.claim(asdict(claim(f"other-{number}", 0, kind=f"kind-{number}")))


def _new_kinds(shares: Shares, second: int) -> None:
    for number in range(MAX_CLAIMS // 4):
        shares.claim(asdict(claim(f"other-{second}-{number}", 1, 1, kind=f"kind-{number}-{second}")))


def _idle_of_the_kind(shares: Shares, second: int) -> None:
    for number in range(MAX_JOBS + 5):
        shares.claim(asdict(claim(f"other-{number}", 0)))


@pytest.mark.parametrize("flood", [_other_kinds, _new_kinds, _idle_of_the_kind])
def test_a_flood_of_claims_does_not_end_the_sharing(flood: Callable[[Shares, int], None]) -> None:
    now = 0.0
    shares = Shares(lambda: now)

    def tell(second: int) -> None:
        nonlocal now
        now = float(second)
        flood(shares, second)

    assert _pair(shares, tell, 25)["cap"] == 4


def test_jobs_beyond_the_most_of_a_kind_have_what_they_can_get() -> None:
    now = 0.0
    shares = Shares(lambda: now)
    for second in (0, 4, 8, 12, 16):  # beyond HIGHER_WAITS_S, and never silent
        now = float(second)
        for number in range(MAX_JOBS):
            told = shares.claim(asdict(claim(f"job-{number}", 3)))
        late = shares.claim(asdict(claim("late", 0, 5, priority=9)))
        other = shares.claim(asdict(claim("other", 0, 5, kind="another")))
    assert (told, late, other) == (asdict(Ruling()),) * 3


def test_a_job_that_claims_another_kind_is_a_new_one_there() -> None:
    shares = Shares(lambda: 0.0)
    for number in range(MAX_JOBS):
        shares.claim(asdict(claim(f"job-{number}", 3)))
    shares.claim(asdict(claim("mover", 3, kind="another")))
    before = len(pickle.dumps(vars(shares) | {"_clock": None}))
    shares.claim(asdict(claim("mover", 3)))
    assert len(pickle.dumps(vars(shares) | {"_clock": None})) < before


def test_claims_of_all_kinds_are_held_to_their_most() -> None:
    shares = Shares(lambda: 0.0)
    sizes = list[int]()
    for number in range(MAX_CLAIMS + 100):
        shares.claim(asdict(claim(f"job-{number:06}", 1, 1, kind=f"kind-{number:06}")))
        if number in (MAX_CLAIMS - 1, MAX_CLAIMS + 99):
            sizes.append(len(pickle.dumps(vars(shares) | {"_clock": None})))
    assert sizes[1] <= sizes[0] + 100, "a hundred more take no more room"


def test_the_worked_example_is_right() -> None:
    assert doctest.testmod(sharing).failed == 0
