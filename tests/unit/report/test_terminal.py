import io
import re

import pytest
from rich.console import Console
from support.progress_states import SPEC, Clock, fleet, job, tokens

from magbatch.replica.board import Snapshot
from magbatch.replica.losses import Home, Loss, LossReason
from magbatch.report import progress as progress_module
from magbatch.report import terminal as terminal_module
from magbatch.report.progress import Eta, JobProgress, ProgressSnapshot
from magbatch.report.terminal import ProgressLine, line, shown_eta
from magbatch.report.usage import JobUsage
from magbatch.spec import parse
from magbatch.totals import Totals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "time", made)
    monkeypatch.setattr(terminal_module, "time", made)
    return made


def shown(terminal: bool, *snapshots: Snapshot, planned: int = 20_000, before: int = 0) -> str:
    """Everything that the line wrote."""
    said = io.StringIO()
    with ProgressLine(Console(file=said, force_terminal=terminal, width=300), job(planned, before)) as line:
        for snapshot in snapshots:
            line.progress.observe(snapshot)
            line.show()
    return said.getvalue()


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
        def snapshot(self) -> ProgressSnapshot:
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
    first = Loss.of(0.0, 3, home, LossReason.ENGINE_DIED, "\x1b[31mOutOfMemoryError:\n  no memory\x1b[0m")
    later = fleet(Totals(), 0, lost=2, losses=[first, Loss.of(1.0, 0, Home(), LossReason.SILENT, "60 s")])
    new_fleet = fleet(Totals(), 0, lost=1, losses=[Loss.of(2.0, 0, Home(), LossReason.NODE_GOES)])
    text = shown(False, fleet(Totals(), 0, lost=1, losses=[first]), later, later, new_fleet, new_fleet)
    assert text.splitlines() == [
        "replica 3 on worker-7 (10.0.0.7) is replaced: its engine died: OutOfMemoryError: no memory; "
        "its open rows go to another replica; log: /tmp/ray/logs/worker-1.err",
        "replica 0 is replaced: no report for 60 s, so the driver ended it; its open rows go to another replica; "
        "log: in Ray's folder of logs",
        "replica 0 is replaced: its node is about to go; finished rows are committed; log: in Ray's folder of logs",
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


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.4, "0s"), (59.6, "1m"), (61, "1m1s"), (3600, "1h"), (3661, "1h1m"), (3605, "1h"), (90_000, "1d1h"),
     (86_460, "1d"), (10 * 86_400 + 7200, "10d2h")],
)  # fmt: skip
def test_a_duration_is_told_by_its_largest_units(seconds: float, shown: str) -> None:
    assert shown_eta(Eta(seconds, seconds, seconds)) == shown
