import math
import random

import pytest
from support.progress_states import Clock, fleet, job, tokens

from magbatch.replica.board import Load, Slot, Snapshot, State, Usage
from magbatch.report import progress as progress_module
from magbatch.report.history import HISTORY_POINTS, Point
from magbatch.report.progress import eta
from magbatch.report.terminal import shown_eta
from magbatch.report.usage import JobUsage
from magbatch.totals import Totals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "time", made)
    return made


# Speed and end


def test_the_speed_is_the_last_minutes(clock: Clock) -> None:
    progress = job()
    for second in range(300):
        progress.observe(fleet(tokens(second if second < 200 else 200 + 10 * (second - 200), 7)))
        clock.now += 1
    snapshot = progress.snapshot()
    assert snapshot.rows_per_s == pytest.approx(10)
    assert snapshot.tokens_per_s == pytest.approx(70)


def test_rows_of_one_length_leave_no_doubt() -> None:
    found = eta(1000, tokens(100, 50), tokens_per_s=500, rows_per_s=10)
    assert found is not None
    assert found == pytest.approx((100.0, 100.0, 100.0))
    assert shown_eta(found) == "1m40s"


def test_the_interval_holds_nine_of_ten_ends() -> None:
    """Jobs of heavy-tailed lengths, of which the first 200 rows are seen: nothing but chance decides."""
    rng = random.Random(7)
    within = 0
    for _ in range(400):
        lengths = [int(rng.lognormvariate(5, 0.8)) + 1 for _ in range(1000)]
        first, rest = lengths[:200], lengths[200:]
        seen = Totals(
            answered=200, records=200, reasoning_tokens=sum(first), squared_tokens=sum(one * one for one in first)
        )
        found = eta(len(rest), seen, tokens_per_s=1000, rows_per_s=1)
        assert found is not None
        within += found.early_s <= sum(rest) / 1000 <= found.late_s
    assert 0.86 <= within / 400 <= 0.94  # 0.9, give or take three standard errors


def test_an_interval_narrows_as_rows_are_seen() -> None:
    def width(rows: int) -> float:
        half = rows // 2
        seen = Totals(
            answered=rows, records=rows, reasoning_tokens=half * 10 + half * 90, squared_tokens=half * (100 + 8100)
        )
        found = eta(1000, seen, 100, 1)
        assert found is not None
        return found.late_s - found.early_s

    assert width(10) > width(100) > width(10_000)


def test_a_few_rows_say_nothing_about_the_others() -> None:
    assert eta(100, tokens(4, 50), 100, 1) is None
    assert eta(100, tokens(5, 50), 100, 1) is not None


def test_a_resumed_job_keeps_the_history_of_its_first_week(clock: Clock) -> None:
    week = [Point(clock.time() - 604_800 + 1181 * number, number, number, 1) for number in range(512)]
    progress = job(10**6, 512, history=week)
    progress.set_earlier_totals(Totals(answered=512))
    for second in range(0, 86_400, 60):
        clock.now += 60
        progress.observe(fleet(tokens(second, 3)))
    assert sum(point.at <= week[-1].at for point in progress.history) > 200


def test_without_tokens_rows_give_the_end_and_without_speed_there_is_none() -> None:
    assert eta(100, Totals(failed=50), 0, 5) == (20, 20, 20)
    assert eta(100, Totals(failed=50), 0, 0) is None
    assert eta(100, Totals(), 0, 0) is None
    assert eta(0, Totals(), 0, 0) == (0, 0, 0)
    assert shown_eta(None) == "-"


# Through fleets, and runs


def test_a_run_goes_on_counting_where_the_one_before_was(clock: Clock) -> None:
    earlier = Totals(answered=90, failed=10, records=90, reasoning_tokens=900, by_code={"internal": 10})
    spent = JobUsage(100.0, 2.0, 1, 3, 4, 5, Usage(commits=7))
    progress = job(1000, 100, refusals=lambda: 1, spent=spent, history=[Point(1.0, 100, 900, 1)])
    progress.observe(fleet(tokens(50, 10)))
    snapshot = progress.snapshot()
    assert snapshot.done == 150
    assert snapshot.totals is None, "what earlier rows hold is not known yet: nothing is better than too little"
    progress.set_earlier_totals(earlier)
    totals = progress.snapshot().totals
    assert totals == earlier.plus(tokens(50, 10))
    slot = Slot(0, State.SERVING, usage=Usage(commits=5), seconds=30, joins=2)
    progress.observe(Snapshot(tokens(60, 10), [slot], False, engine_deaths=1, starved_s=0.5, input_errors=1))
    snapshot = progress.snapshot()
    assert snapshot.spent == JobUsage(100 + 2 * 30, 2.5, 2, 4, 5, 6, Usage(commits=12), generated_tokens=600)
    assert snapshot.cost == pytest.approx(3.6 * 160 / 3600)
    assert progress.history[0] == Point(1.0, 100, 900, 1)


def test_a_second_fleet_adds_to_the_first(clock: Clock) -> None:
    progress = job(100)
    slot = Slot(0, State.SERVING, tokens(40, 10), Usage(commits=5), Load(3), 30, 1)
    progress.observe(Snapshot(tokens(40, 10), [slot], False, engine_deaths=1))
    progress.end_fleet()
    between = progress.snapshot()
    assert (between.done, between.fleet.replicas, between.spent.engine_deaths) == (40, 0, 1)
    assert [(one.number, one.done.rows, one.load) for one in between.slots] == [(0, 40, Load())]
    progress.observe(fleet(tokens(60, 10), engine_deaths=2))
    snapshot = progress.snapshot()
    assert (snapshot.done, snapshot.seen, snapshot.spent.engine_deaths) == (100, tokens(100, 10), 3)
    assert snapshot.spent.device_s == 2 * 30


def test_at_the_end_counts_are_the_manifests() -> None:
    """A row that two replicas have committed is counted twice until then."""
    progress = job(10)
    progress.observe(fleet(tokens(11, 5)))
    assert progress.snapshot().done == 10
    progress.finish(tokens(10, 5))
    snapshot = progress.snapshot()
    assert (snapshot.complete, snapshot.done, snapshot.totals) == (True, 10, tokens(10, 5))


def test_a_long_history_keeps_its_ends_in_few_points(clock: Clock) -> None:
    progress = job(10**6)
    began = clock.time()
    for second in range(5000):
        progress.observe(fleet(tokens(second, 3)))
        clock.now += 1
    progress.end_fleet()
    history = progress.history
    assert HISTORY_POINTS / 4 < len(history) <= HISTORY_POINTS + 1
    assert history[0].at == began
    assert history[-1].rows == 4999
    assert [point.at for point in history] == sorted(point.at for point in history)
    assert all(math.isclose(point.tokens, 3 * point.rows) for point in history)


def test_progress_is_when_rows_were_committed_last(clock: Clock) -> None:
    progress = job()
    began = clock.time()
    assert progress.snapshot().progressed == began
    clock.now += 100
    progress.observe(fleet(Totals()))
    assert progress.snapshot().progressed == began
    progress.observe(fleet(tokens(1, 1)))
    clock.now += 100
    progress.observe(fleet(tokens(1, 1)))
    assert progress.snapshot().progressed == began + 100
    assert progress.silent_s == 0
    clock.now += 9
    assert progress.silent_s == 9
    progress.end_fleet()
    assert progress.silent_s == 0
