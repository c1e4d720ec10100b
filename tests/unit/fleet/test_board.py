import pytest

from magbatch.engines.base import EngineLoad
from magbatch.errors import DefectError
from magbatch.fleet.board import BoardState
from magbatch.replica.board import Load, Order, Slot, State, Usage, silence_s
from magbatch.replica.losses import MOST_LOSSES, Home, LossReason
from magbatch.totals import Totals

NONE = (Totals(), Usage(), Load())


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_board_begins_empty() -> None:
    snapshot = BoardState().snapshot()
    assert (snapshot.done, snapshot.slots, snapshot.starting) == (Totals(), [], True)
    assert (snapshot.replicas, snapshot.restarts, snapshot.engine_error) == (0, 0, None)


def test_a_board_adds_up_what_replicas_report() -> None:
    board = BoardState()
    for name in ("one", "two"):
        board.join(name, name)
    assert board.snapshot().count(State.STARTING) == 2
    assert board.report("one", *NONE) == Order.NONE
    assert board.snapshot().starting is False
    first = Totals(answered=3, failed=1, prompt_tokens=30, reasoning_tokens=20, answer_tokens=10, by_code={"x": 1})
    assert board.report("one", first, Usage(commits=2, by_commit={"0.1": 2}), Load(in_flight=4)) == Order.NONE
    board.report("two", Totals(answered=1, failed=1, by_code={"x": 1}), Usage(commits=1, by_commit={"0.1": 1}), Load(7))
    snapshot = board.snapshot()
    assert snapshot.done == first.plus(Totals(answered=1, failed=1, by_code={"x": 1}))
    assert snapshot.done.by_code == {"x": 2}
    assert snapshot.replicas == 2
    assert [(slot.number, slot.done.rows, slot.load.in_flight) for slot in snapshot.slots] == [
        (0, 4, 4),
        (1, 2, 7),
    ]
    assert snapshot.slots[0].usage == Usage(commits=2, by_commit={"0.1": 2})
    board.left("one")
    board.left("never came")
    assert board.snapshot().replicas == 1
    assert board.snapshot().done == snapshot.done


def test_what_a_replica_did_stays_when_it_dies_and_goes_on_with_its_successor(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic)
    board.join("one", "actor")
    board.report("one", Totals(answered=3), Usage(commits=1, preemptions=2), Load(5, 6, EngineLoad(running=4)))
    clock.now += 10
    board.report("one", *NONE)
    clock.now += 5
    board.join(
        "two", "actor"
    )  # Ray starts the same actor again before the board can know that the first process is gone
    (slot,) = board.snapshot().slots
    assert (slot.state, slot.joins, slot.done.answered) == (State.STARTING, 2, 3)
    assert (slot.usage.commits, slot.usage.preemptions) == (1, 2)
    assert slot.load == Load(), "what is gone has no load"
    assert board.snapshot().restarts == 1
    clock.now += 7
    board.report("two", Totals(answered=4), Usage(preemptions=1), Load(1))
    (slot,) = board.snapshot().slots
    assert (slot.state, slot.done.answered, slot.usage.preemptions, slot.load.in_flight) == (State.SERVING, 7, 3, 1)
    assert slot.seconds == 15 + 7


def test_a_replica_that_is_silent_is_lost_and_its_place_is_the_next_ones(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic)
    for name in ("one", "two"):
        board.join(name, name)
        board.report(name, *NONE)
    clock.now += 20
    board.report("two", *NONE)
    clock.now += 15
    snapshot = board.snapshot()
    assert [slot.state for slot in snapshot.slots] == [State.LOST, State.SERVING]
    assert [slot.seconds for slot in snapshot.slots] == [30, 35], "what is lost holds nothing once that is known"
    board.join("three", "three")
    assert [slot.joins for slot in board.snapshot().slots] == [2, 1]
    assert len(board.snapshot().slots) == 2
    board.report("one", Totals(answered=1), Usage(), Load())  # it was not dead, but cut off: it gets a place again
    assert board.snapshot().done.answered == 1
    assert len(board.snapshot().slots) == 3


def test_an_engine_that_starts_for_long_is_not_lost(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic)
    board.join("one", "one")
    clock.now += 900
    (slot,) = board.snapshot().slots
    assert (slot.state, slot.seconds) == (State.STARTING, 900)


def test_an_engine_that_does_not_start_holds_its_devices_no_longer(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic, start_timeout_s=600)
    board.join("one", "one")
    board.join("two", "two")
    clock.now += 30
    board.engine_failed("one", "no GPU")
    clock.now += 500
    assert [(slot.state, slot.seconds) for slot in board.snapshot().slots] == [
        (State.LOST, 30), (State.STARTING, 530),
    ]  # fmt: skip
    clock.now += 100
    assert board.snapshot().slots[1].state == State.LOST, "its node is gone, and nobody could say so"


def test_a_bill_never_falls(clock: Clock) -> None:
    board, bill = BoardState(clock=clock.monotonic, start_timeout_s=100), list[float]()
    board.join("one", "one")
    board.join("two", "two")
    board.report("one", *NONE)
    for second in range(200):
        clock.now += 1
        if second == 20:
            board.report("one", *NONE)
        if second == 150:
            board.join("three", "three")
        bill.append(sum(slot.seconds for slot in board.snapshot().slots))
    assert bill == sorted(bill)


def test_rows_that_wait_for_their_commit_starve_nobody() -> None:
    board = BoardState(rows=10)
    board.report("one", Totals(answered=8), Usage(short_s=3.0), Load(finished=2))
    assert board.snapshot().starved_s == 0


def test_free_slots_starve_an_engine_only_while_rows_remain_to_be_begun() -> None:
    board = BoardState(rows=10)
    board.join("one", "one")
    board.report("one", Totals(answered=2), Usage(short_s=1.0), Load(in_flight=3))
    assert board.snapshot().starved_s == 1.0
    board.report("one", Totals(), Usage(short_s=1.0), Load(in_flight=8))
    assert board.snapshot().starved_s == 1.0, "2 are done and 8 in the engine: there is nothing to begin"
    board.report("one", Totals(), Usage(short_s=0.5), Load(in_flight=7))
    assert board.snapshot().starved_s == 1.5
    assert board.snapshot().slots[0].usage.short_s == 2.5


def test_rows_of_a_replica_that_is_lost_remain_to_be_begun(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic, rows=10)
    board.report("one", Totals(), Usage(), Load(in_flight=10))
    clock.now += 100
    board.report("two", Totals(), Usage(short_s=1.0), Load())
    assert board.snapshot().starved_s == 1.0


def test_a_board_that_lost_its_last_replica_is_not_starting_again() -> None:
    """Else an engine that failed to start long ago would end a job whose replica is being replaced."""
    board = BoardState()
    board.engine_failed("one", "no memory on that node")
    board.report("one", *NONE)
    board.left("one")
    assert (board.snapshot().starting, board.snapshot().replicas) == (False, 0)


def test_a_board_counts_strikes_row_by_row() -> None:
    board = BoardState()
    assert board.begin(4) == (True, {})
    assert board.begin(4) == (False, {})
    board.strike("one", {4: ["a", "b"], 5: ["c"]}, LossReason.ENGINE_DIED, "oops")
    board.strike("two", {4: ["b"]}, LossReason.ENGINE_DIED, "oops")
    assert board.begin(4) == (False, {"a": 1, "b": 2})
    assert board.begin(5) == (True, {"c": 1})
    assert board.begin(6) == (True, {})
    assert board.snapshot().engine_deaths == 2


def test_a_board_keeps_what_the_first_engine_said() -> None:
    board = BoardState()
    board.engine_failed("one", "no GPU")
    board.engine_failed("two", "no GPU either")
    assert board.snapshot().engine_error == "no GPU"
    assert board.snapshot().starting is True


def test_a_board_that_stops_tells_every_replica() -> None:
    board = BoardState()
    board.stop()
    assert board.report("one", *NONE) == Order.STOP
    assert board.report("two", *NONE) == Order.STOP


def test_those_that_came_last_give_back(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic)
    for name in ("one", "two", "three", "four"):
        clock.now += 1
        board.join(name, name)
    for name in ("one", "two", "three"):
        assert board.report(name, *NONE) == Order.NONE
    assert sorted(board.give_back(2)) == ["three", "two"]
    orders = {name: board.report(name, *NONE) for name in ("one", "two", "three")}
    assert orders == {"one": Order.NONE, "two": Order.GIVE_BACK, "three": Order.GIVE_BACK}, "the fourth starts"
    board.left("three")
    board.join("three again", "three")
    assert board.report("three again", *NONE) == Order.NONE


def test_refusals_of_the_input_are_counted_and_said() -> None:
    board = BoardState()
    board.input_refused("503")
    board.input_refused("503 again")
    assert (board.snapshot().input_errors, board.snapshot().trouble) == (2, (2, "503 again"))


def test_a_snapshot_is_one_of_its_moment() -> None:
    board = BoardState()
    board.report("one", Totals(answered=1), Usage(commits=1), Load())
    before = board.snapshot()
    board.report("one", Totals(answered=1), Usage(commits=1), Load())
    assert before.done.answered == 1
    assert before.slots == [Slot(0, State.SERVING, Totals(answered=1), before.slots[0].usage, Load(),
                                   before.slots[0].seconds, 1)]  # fmt: skip


# Replicas that say nothing, or end by a defect.


def look_for(board: BoardState, clock: Clock, seconds: float) -> list[tuple[str, str]]:
    """Look four times a second, like the driver; return the replicas that are silent in the end."""
    silent: list[tuple[str, str]] = []
    for _ in range(round(4 * seconds)):
        clock.now += 0.25
        silent = board.snapshot().silent
    return silent


@pytest.mark.parametrize(("row_timeout_s", "seconds"), [(3.0, 60.0), (90.0, 90.0), (4000.0, 600.0), (None, 600.0)])
def test_a_replica_may_be_silent_for_as_long_as_a_row_and_for_a_minute_at_least(
    row_timeout_s: float | None, seconds: float
) -> None:
    assert silence_s(row_timeout_s) == seconds


def test_a_replica_that_serves_and_says_nothing_is_silent_whoever_has_its_place(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic, silence_s=60)
    board.join("one", "actor 1")
    assert look_for(board, clock, 100) == [], "its engine starts"
    board.report("one", *NONE)
    assert look_for(board, clock, 59) == []
    board.report("one", *NONE)
    assert look_for(board, clock, 59) == []
    board.join("two", "actor 2")  # it takes the place of the first, which is counted as lost
    assert look_for(board, clock, 2) == [("one", "actor 1")]
    board.report("one", *NONE)
    assert look_for(board, clock, 2) == [], "it has woken up"


def test_the_rows_of_a_replica_that_is_ended_for_its_silence_are_struck_once(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic, silence_s=60)
    board.join("one", "actor 1")
    board.announce("one", {4: ["a", "b"]})
    board.report("one", *NONE, {4: ["b"], 5: ["c"]})
    board.announce("one", {4: ["b"], 5: ["d"]})  # c has finished, and must not be struck
    assert look_for(board, clock, 61) == [("one", "actor 1")]
    board.froze("one")
    board.froze("one")
    assert (board.begin(4)[1], board.begin(5)[1]) == ({"b": 1}, {"d": 1})
    snapshot = board.snapshot()
    assert (snapshot.silent, snapshot.engine_deaths) == ([], 1)
    (loss,) = snapshot.losses
    assert loss.why == "no report for 60 s, so the driver ended it; its open rows go to another replica"


@pytest.mark.parametrize("end", ["left", "engine_failed", "join"])
def test_a_replica_that_has_ended_is_not_silent(clock: Clock, end: str) -> None:
    board = BoardState(clock=clock.monotonic, silence_s=60)
    board.join("one", "actor 1")
    board.report("one", *NONE)
    {
        "left": lambda: board.left("one"),
        "engine_failed": lambda: board.engine_failed("one", "no"),
        "join": lambda: board.join("two", "actor 1"),  # Ray has started its process again
    }[end]()
    assert look_for(board, clock, 120) == []


def test_a_board_that_stood_still_itself_takes_nobody_for_silent(clock: Clock) -> None:
    board = BoardState(clock=clock.monotonic, silence_s=60)
    board.join("one", "actor 1")
    board.report("one", *NONE)
    board.snapshot()
    clock.now += 500
    assert board.snapshot().silent == []
    assert look_for(board, clock, 50) == []


def test_what_is_heard_twice_counts_once() -> None:
    """A call whose answer was lost is made again."""
    board = BoardState()
    board.join("one", "actor 1")
    for _ in range(2):
        board.report("one", Totals(answered=3), Usage(commits=1), Load(), {}, 1)
        board.strike("one", {4: ["a"]}, LossReason.ENGINE_DIED, "oops")
    board.report("one", Totals(answered=1), Usage(commits=1), Load(), {}, 2)
    snapshot = board.snapshot()
    assert (snapshot.done.answered, snapshot.slots[0].usage.commits, snapshot.engine_deaths) == (4, 2, 1)
    assert board.begin(4)[1] == {"a": 1}


def test_replicas_that_break_one_after_the_other_end_the_job_unless_rows_are_done() -> None:
    board = BoardState()
    for number in range(5):
        board.join(f"{number}", "actor")
        board.report(f"{number}", Totals(answered=1) if number == 1 else Totals(), Usage(), Load())
        board.broke(f"{number}", "KeyError: 'x'")
        failure = board.snapshot().failure
        assert (failure is None) == (number < 3)
    assert isinstance(failure, DefectError)
    assert "KeyError: 'x'" in str(failure)
    assert board.snapshot().count(State.LOST) == 1


# Replicas that are replaced.

HERE, THERE = Home("a (10.0.0.1)", "/logs/1.err"), Home("b (10.0.0.2)", "/logs/2.err")


def test_a_replica_that_ends_is_noted_once_with_its_place_reason_and_log() -> None:
    board = BoardState()
    board.join("zero", "actor 0", THERE)
    board.join("one", "actor 1", HERE)
    board.report("one", *NONE)
    for _ in range(2):
        board.strike("one", {}, LossReason.ENGINE_DIED, "out of memory")
    board.left("one", LossReason.NODE_GOES)
    snapshot = board.snapshot()
    (loss,) = snapshot.losses
    assert (snapshot.lost, loss.replica, loss.node, loss.log) == (1, 1, HERE.node, HERE.log)
    assert loss.why == "its engine died: out of memory; its open rows go to another replica"


@pytest.mark.parametrize(("home", "why"), [(HERE, "its process was killed"), (THERE, "its process or node")])
def test_a_process_that_ends_without_a_word_is_noted_when_its_successor_comes(home: Home, why: str) -> None:
    board = BoardState()
    board.join("one", "actor", HERE)
    board.report("one", *NONE)
    board.join("two", "actor", home)
    (loss,) = board.snapshot().losses
    assert loss.why.startswith(why)
    assert loss.node == HERE.node


def test_a_replica_that_gives_its_devices_back_is_no_loss() -> None:
    board = BoardState()
    board.join("one", "actor", HERE)
    board.report("one", *NONE)
    board.left("one")
    board.join("two", "actor", HERE)
    assert (board.snapshot().lost, board.snapshot().losses) == (0, [])


def test_losses_are_counted_without_end_and_kept_to_the_last() -> None:
    board = BoardState()
    for number in range(MOST_LOSSES + 5):
        board.join(f"{number}", "actor", HERE)
        board.left(f"{number}", LossReason.DEFECT, f"reason {number}")
    snapshot = board.snapshot()
    assert (snapshot.lost, len(snapshot.losses)) == (MOST_LOSSES + 5, MOST_LOSSES)
    assert snapshot.losses[-1].why.endswith(f": reason {MOST_LOSSES + 4}")


def test_a_failed_start_says_where() -> None:
    board = BoardState()
    board.join("one", "actor", HERE)
    board.engine_failed("one", "no GPU")
    assert board.snapshot().failed_home.logs() == "log: /logs/1.err on a (10.0.0.1)"
