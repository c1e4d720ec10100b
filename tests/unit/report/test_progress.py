import io
import math
import random
import re
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from magbatch.replica.board import Load, Slot, Snapshot, State, Usage
from magbatch.replica.losses import MOST_LOSSES, Home, Loss
from magbatch.report import progress as progress_module
from magbatch.report.progress import (
    HISTORY_POINTS,
    Eta,
    JobProgress,
    JobUsage,
    Point,
    ProgressLine,
    ProgressSnapshot,
    eta,
    line,
    shown_eta,
)
from magbatch.spec import parse
from magbatch.totals import Totals

SPEC = """
name: small
model: {source: builtin:tiny, engine: fake}
input: {path: /in, columns: {prompt: question}}
output: {path: /out}
replicas: {gpus: 2}
cost: {device_hour: 3.6, currency: EUR}
"""


class Clock:
    """Time that a test moves, by both clocks."""

    def __init__(self) -> None:
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_700_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "time", made)
    return made


def job(planned: int = 20_000, before: int = 0, **more: Any) -> JobProgress:
    return JobProgress(parse(SPEC), planned, before, **more)


def tokens(rows: int, each: int, failed: int = 0) -> Totals:
    """Rows of one length."""
    return Totals(
        answered=rows, failed=failed, records=rows, reasoning_tokens=rows * each, squared_tokens=rows * each * each
    )


def fleet(done: Totals, replicas: int = 1, **more: Any) -> Snapshot:
    slots = [Slot(number, State.SERVING) for number in range(replicas)]
    return Snapshot(done, slots, False, **more)


def shown(terminal: bool, *snapshots: Snapshot, planned: int = 20_000, before: int = 0) -> str:
    """Everything that the line wrote."""
    said = io.StringIO()
    with ProgressLine(Console(file=said, force_terminal=terminal, width=300), job(planned, before)) as line:
        for snapshot in snapshots:
            line.progress.observe(snapshot)
            line.show()
    return said.getvalue()


# The line


def test_the_line_says_what_is_committed() -> None:
    done = Totals(answered=1100, failed=134, records=1100, reasoning_tokens=5, by_status={"truncated": 7})
    text = shown(True, fleet(done, 3), before=10_000)
    assert "11,234/20,000" in text
    assert "134 failed" in text
    assert "7 truncated" in text
    assert "3 replicas" in text
    assert "ETA -" in text  # one report gives no speed


def test_the_line_gives_a_speed_and_an_end(clock: Clock) -> None:
    progress = job()
    progress.observe(fleet(Totals()))
    clock.now += 10
    progress.observe(fleet(tokens(5_000, 8)))
    said = io.StringIO()
    with ProgressLine(Console(file=said, force_terminal=True, width=300), progress) as line:
        line.show()
    text = said.getvalue()
    assert "5,000/20,000 (25.0%) · ETA 30s · 500.0 rows/s · 4,000 tokens/s" in text
    assert "· 1 replica" in text


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            160,
            "9,876,543/10,000,000 (98.8%) · ETA 2d13h (2d12h to 2d15h) · 1,234.5 rows/s · 1,234,567 tokens/s · "
            "123,456 failed · 45,678 truncated · 40 replicas",
        ),
        (
            120,
            "9,876,543/10,000,000 (98.8%) · ETA 2d13h · 1,234.5 rows/s · 1,234,567 tokens/s · 123,456 failed · "
            "40 replicas",
        ),
        (80, "9.88M/10M 98.8% · ETA 2d13h · 1.23k rows/s · 123k failed · 40 replicas"),
        (60, "9.88M/10M 98.8% · ETA 2d13h · 1.23k rows/s · 123k failed"),
        (40, "9.88M/10M 98.8% · ETA 2d13h"),
        (20, "9.88M/10M 98.8%"),
    ],
)
def test_a_narrow_terminal_loses_what_matters_least_and_nothing_is_cut(width: int, shown: str) -> None:
    seen = Totals(answered=9_753_087, failed=123_456, by_status={"truncated": 45_678})
    many = ProgressSnapshot(
        10_000_000, 9_876_543, seen, seen, fleet(seen, 40), [], 1234.5, 1_234_567.0,
        Eta(219_600.0, 216_000.0, 226_800.0), JobUsage(), None, 0.0, 0.0, complete=False,
    )  # fmt: skip

    class Large(JobProgress):
        def standing(self) -> ProgressSnapshot:
            return many

    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=width, color_system=None)
    with ProgressLine(console, Large(parse(SPEC), 10_000_000, 0)) as bar:
        bar.show()
        bar._bar.refresh()
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", one).strip() for one in re.split(r"[\r\n]+", said.getvalue())]
    assert [one for one in lines if one][-1][2:] == shown
    assert all(len(one) <= width for one in lines)


def test_the_quickstarts_line_fits_a_common_terminal() -> None:
    seen = Totals(answered=330)
    small = ProgressSnapshot(
        500,
        330,
        seen,
        seen,
        fleet(seen),
        [],
        21.5,
        2042.0,
        Eta(9.0, 8.0, 9.0),
        JobUsage(),
        None,
        0.0,
        0.0,
        complete=False,
    )
    assert line(small, 0.0, 78) == "330/500 (66.0%) · ETA 9s · 21.5 rows/s · 2,042 tokens/s · 0 failed · 1 replica"
    assert line(small, 0.0, 200).startswith("[bar.complete]━")


def test_the_line_says_that_the_engine_starts() -> None:
    assert "5/20,000 · starting the engine, 0 s" in shown(True, Snapshot(), before=5)


def test_a_dead_engine_is_said_once_and_without_a_terminal_too() -> None:
    home = Home("worker-7 (10.0.0.7)", "/tmp/ray/logs/worker-1.err")
    first = Loss.of(0.0, 3, home, "its engine died: \x1b[31mOutOfMemoryError:\n  no memory\x1b[0m")
    later = fleet(Totals(), 0, lost=2, losses=[first, Loss.of(1.0, 0, Home(), "it said nothing")])
    new_fleet = fleet(Totals(), 0, lost=1, losses=[Loss.of(2.0, 0, Home(), "its node is about to go")])
    text = shown(False, fleet(Totals(), 0, lost=1, losses=[first]), later, later, new_fleet, new_fleet)
    assert text.splitlines() == [
        "replica 3 on worker-7 (10.0.0.7) is replaced: its engine died: OutOfMemoryError: no memory; "
        "log: /tmp/ray/logs/worker-1.err",
        "replica 0 is replaced: it said nothing; log: in Ray's folder of logs",
        "replica 0 is replaced: its node is about to go; log: in Ray's folder of logs",
    ]


def test_a_plain_line_comes_once_a_minute_where_there_is_no_terminal(clock: Clock) -> None:
    said = io.StringIO()
    with ProgressLine(Console(file=said, width=300), job()) as line:
        for second in range(130):
            line.progress.observe(fleet(tokens(10 * second, 5)))
            line.show()
            clock.now += 1
    assert [text.split(" · ")[:3:2] for text in said.getvalue().splitlines()] == [
        ["rows 600/20,000 (3.0%)", "10.0 rows/s"],
        ["rows 1,200/20,000 (6.0%)", "10.0 rows/s"],
    ]


def test_no_rows_are_no_division_by_zero() -> None:
    assert "0/0" in shown(True, fleet(Totals()), fleet(Totals()), planned=0)


# Speed and end


def test_the_speed_is_the_last_minutes(clock: Clock) -> None:
    progress = job()
    for second in range(300):
        progress.observe(fleet(tokens(second if second < 200 else 200 + 10 * (second - 200), 7)))
        clock.now += 1
    standing = progress.standing()
    assert standing.rows_per_s == pytest.approx(10)
    assert standing.tokens_per_s == pytest.approx(70)


def test_rows_of_one_length_leave_no_doubt() -> None:
    found = eta(1000, tokens(100, 50), tokens_per_s=500, rows_per_s=10)
    assert found is not None
    assert found == pytest.approx((100.0, 100.0, 100.0))
    assert shown_eta(found) == "1m40s"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.4, "0s"), (59.6, "1m"), (61, "1m1s"), (3600, "1h"), (3661, "1h1m"), (3605, "1h"), (90_000, "1d1h"),
     (86_460, "1d"), (10 * 86_400 + 7200, "10d2h")],
)  # fmt: skip
def test_a_duration_is_told_by_its_largest_units(seconds: float, shown: str) -> None:
    assert shown_eta(Eta(seconds, seconds, seconds)) == shown


def test_the_interval_holds_nine_of_ten_ends() -> None:
    """Jobs of heavy-tailed lengths, of which the first 500 rows are seen: nothing but chance decides."""
    rng = random.Random(7)
    within = 0
    for _ in range(400):
        lengths = [int(rng.lognormvariate(5, 0.8)) + 1 for _ in range(2500)]
        first, rest = lengths[:500], lengths[500:]
        seen = Totals(
            answered=500, records=500, reasoning_tokens=sum(first), squared_tokens=sum(one * one for one in first)
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
    standing = progress.standing()
    assert standing.done == 150
    assert standing.totals is None, "what earlier rows hold is not known yet: nothing is better than too little"
    progress.set_earlier_totals(earlier)
    totals = progress.standing().totals
    assert totals == earlier.plus(tokens(50, 10))
    slot = Slot(0, State.SERVING, usage=Usage(commits=5), seconds=30, joins=2)
    progress.observe(Snapshot(tokens(60, 10), [slot], False, engine_deaths=1, starved_s=0.5, input_errors=1))
    standing = progress.standing()
    assert standing.spent == JobUsage(100 + 2 * 30, 2.5, 2, 4, 5, 6, Usage(commits=12), generated_tokens=600)
    assert standing.cost == pytest.approx(3.6 * 160 / 3600)
    assert progress.history[0] == Point(1.0, 100, 900, 1)


def test_a_second_fleet_adds_to_the_first(clock: Clock) -> None:
    progress = job(100)
    slot = Slot(0, State.SERVING, tokens(40, 10), Usage(commits=5), Load(3), 30, 1)
    progress.observe(Snapshot(tokens(40, 10), [slot], False, engine_deaths=1))
    progress.end_fleet()
    between = progress.standing()
    assert (between.done, between.snapshot.replicas, between.spent.engine_deaths) == (40, 0, 1)
    assert [(one.number, one.done.rows, one.load) for one in between.slots] == [(0, 40, Load())]
    progress.observe(fleet(tokens(60, 10), engine_deaths=2))
    standing = progress.standing()
    assert (standing.done, standing.seen, standing.spent.engine_deaths) == (100, tokens(100, 10), 3)
    assert standing.spent.device_s == 2 * 30


def test_at_the_end_counts_are_the_manifests() -> None:
    """A row that two replicas have committed is counted twice until then."""
    progress = job(10)
    progress.observe(fleet(tokens(11, 5)))
    assert progress.standing().done == 10
    progress.finish(tokens(10, 5))
    standing = progress.standing()
    assert (standing.complete, standing.done, standing.totals) == (True, 10, tokens(10, 5))


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
    assert progress.standing().progressed == began
    clock.now += 100
    progress.observe(fleet(Totals()))
    assert progress.standing().progressed == began
    progress.observe(fleet(tokens(1, 1)))
    clock.now += 100
    progress.observe(fleet(tokens(1, 1)))
    assert progress.standing().progressed == began + 100
    assert progress.silent_s == 0
    clock.now += 9
    assert progress.silent_s == 9
    progress.end_fleet()
    assert progress.silent_s == 0


def test_the_last_losses_of_all_runs_are_kept_and_all_are_counted() -> None:
    losses = [Loss.of(float(number), 0, Home(), "x") for number in range(MOST_LOSSES + 5)]
    earlier, mine = JobUsage(lost=30, losses=losses[:15]), JobUsage(lost=10, losses=losses[15:])
    both = earlier.plus(mine)
    assert (both.lost, both.losses) == (40, losses[5:])
    assert JobUsage.from_dict(asdict(both)) == both
