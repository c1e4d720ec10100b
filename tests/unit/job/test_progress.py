import io
from dataclasses import asdict

from rich.console import Console

from magbatch.job.progress import BoardState, ProgressLine, Snapshot
from magbatch.job.replica import Tally


def test_a_board_begins_empty() -> None:
    snapshot = BoardState().snapshot()
    assert asdict(snapshot) == asdict(Snapshot(Tally(), 0, True, None))


def test_a_board_adds_up_what_replicas_report() -> None:
    board = BoardState()
    assert board.report("one", Tally()) is False
    assert board.snapshot().starting is False
    assert board.report("one", Tally(3, 1, 2, 30, 20, 10)) is False
    assert board.report("two", Tally(1, 0, 0, 5, 4, 3)) is False
    snapshot = board.snapshot()
    assert snapshot.done == Tally(4, 1, 2, 35, 24, 13)
    assert snapshot.replicas == 2
    board.left("one")
    board.left("never came")
    assert board.snapshot().replicas == 1
    assert board.snapshot().done == Tally(4, 1, 2, 35, 24, 13)


def test_a_board_that_lost_its_last_replica_is_not_starting_again() -> None:
    """Else an engine that failed to start long ago would end a job whose replica is being replaced."""
    board = BoardState()
    board.engine_failed("no memory on that node")
    board.report("one", Tally())
    board.left("one")
    assert (board.snapshot().starting, board.snapshot().replicas) == (False, 0)


def test_a_board_counts_strikes_row_by_row() -> None:
    board = BoardState()
    assert board.begin(4) == (True, {})
    assert board.begin(4) == (False, {})
    board.strike({4: ["a", "b"], 5: ["c"]})
    board.strike({4: ["b"]})
    assert board.begin(4) == (False, {"a": 1, "b": 2})
    assert board.begin(5) == (True, {"c": 1})
    assert board.begin(6) == (True, {})
    assert board.snapshot().engine_deaths == 2


def test_a_board_keeps_what_the_first_engine_said() -> None:
    board = BoardState()
    board.engine_failed("no GPU")
    board.engine_failed("no GPU either")
    assert board.snapshot().engine_error == "no GPU"
    assert board.snapshot().starting is True


def test_a_board_that_stops_tells_every_replica() -> None:
    board = BoardState()
    board.stop()
    assert board.report("one", Tally()) is True
    assert board.report("two", Tally()) is True


def shown(terminal: bool, *snapshots: Snapshot, planned: int = 20_000, before: int = 0) -> str:
    """Everything that the line wrote."""
    said = io.StringIO()
    with ProgressLine(Console(file=said, force_terminal=terminal, width=300), planned, before) as line:
        for snapshot in snapshots:
            line.show(snapshot)
    return said.getvalue()


def test_the_line_says_what_is_committed() -> None:
    done = Tally(answered=1100, failed=134, truncated=7, reasoning_tokens=5)
    text = shown(True, Snapshot(done, 3, False), before=10_000)
    assert "11,234/20,000" in text
    assert "134 failed" in text
    assert "7 truncated" in text
    assert "3 replicas" in text
    assert "ETA -" in text  # one report gives no speed


def test_the_line_gives_a_speed_and_an_end() -> None:
    first = Snapshot(Tally(), 1, False)
    text = shown(True, first, Snapshot(Tally(answered=10_000, reasoning_tokens=1, answer_tokens=1), 1, False))
    assert "1 replica ·" in text
    assert "10,000/20,000" in text
    assert " 0.0 rows/s" not in text.rpartition("10,000/20,000")[2]
    assert "ETA 0:00:0" in text  # as many rows again, in no time


def test_the_line_says_that_the_engine_starts() -> None:
    assert "5/20000 · starting the engine, 0 s" in shown(True, Snapshot(), before=5)


def test_a_dead_engine_is_said_once_and_without_a_terminal_too() -> None:
    dead = Snapshot(Tally(), 0, False, engine_deaths=1)
    text = shown(False, dead, dead)
    assert text.splitlines() == ["an engine died (number 1); its replica is replaced and its open rows are asked again"]


def test_no_rows_are_no_division_by_zero() -> None:
    assert "0/0" in shown(True, Snapshot(Tally(), 1, False), Snapshot(Tally(), 1, False), planned=0)
