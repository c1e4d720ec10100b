"""A replica's process starts its engine in time, finds its board, and ends by itself. Rows are in test_replica.py."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from magbatch.fleet import worker
from magbatch.fleet.board import BoardState
from magbatch.fleet.worker import RayBoard, uncollected
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.losses import LossReason
from magbatch.totals import Totals


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Leaves this process as it was."""
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_engines_start_leaves_is_not_looked_at_again(fails: bool) -> None:
    made: list[object] = []
    before = gc.get_freeze_count()
    try:
        with uncollected():
            made = [[] for _ in range(10_000)]
            assert not gc.isenabled()
            if fails:
                raise RuntimeError("no engine")
    except RuntimeError:
        assert fails
    assert gc.isenabled(), "what rows leave behind is collected"
    assert gc.get_freeze_count() >= before + len(made)
    young = {id(one) for one in gc.get_objects()}
    assert not young & {id(one) for one in made}


class Handle:
    """Ray's handle of a board: each call fails as Ray says it does, for as long as there are failures.

    Args:
        failures: Errors of the next calls, in order.
    """

    def __init__(self, *failures: Exception) -> None:
        self.state, self.failures, self.calls = BoardState(), list(failures), 0

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any) -> Any:
            self.calls += 1
            answer = getattr(self.state, method)(*arguments)  # it may have been heard although the answer is lost
            if self.failures:
                raise self.failures.pop(0)
            return answer

        return SimpleNamespace(remote=call)


AWAY = ray.exceptions.ActorUnavailableError("the network was away", b"0" * 16)


def test_a_board_that_cannot_be_reached_for_a_moment_is_asked_again_and_counts_once() -> None:
    died: list[bool] = []
    handle = Handle(AWAY, AWAY)
    handle.state.join("one", "actor")

    async def work() -> None:
        board = RayBoard(handle, lambda: died.append(True), wait_s=0.01)
        assert await board.report("one", Totals(answered=3), Usage(commits=1), Load(), {0: ["a"]}) == Order.NONE
        handle.failures = [AWAY]
        await board.strike("one", {0: ["a"]}, LossReason.ENGINE_DIED, "oops")
        await board.report("one", Totals(answered=2), Usage(commits=1), Load(), {})
        handle.failures = [AWAY]
        assert await board.begin(0) == (False, {"a": 1}), "the shard is looked up once more, and no row is lost"

    asyncio.run(work())
    assert (died, handle.calls) == ([], 8)
    snapshot = handle.state.snapshot()
    assert (snapshot.done.answered, snapshot.slots[0].usage.commits, snapshot.engine_deaths) == (5, 2, 1)


def test_a_board_that_is_dead_ends_the_replica() -> None:
    died: list[bool] = []
    handle = Handle(AWAY, ray.exceptions.ActorDiedError())

    async def work() -> None:
        board = RayBoard(handle, lambda: died.append(True), wait_s=0.01)
        with pytest.raises(ray.exceptions.ActorDiedError):
            await board.trouble("x")

    asyncio.run(work())
    assert (died, handle.calls) == ([True], 2)


def test_a_start_that_never_ends_is_given_up_although_the_board_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[bool] = []
    monkeypatch.setattr(worker, "_die", lambda: died.append(True))

    def gone(*_: Any) -> None:
        raise ConnectionError("the board is gone")

    board = SimpleNamespace(engine_failed=SimpleNamespace(remote=gone))
    with pytest.raises(ConnectionError):
        worker._give_up_start("one", 5, board)
    assert died == [True]


def test_a_start_has_a_budget_and_one_that_ends_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()
    monkeypatch.setattr(worker, "_give_up_start", lambda *_: given_up.set())
    with worker._start_budget("one", 0.01, None):
        assert given_up.wait(5)
    given_up.clear()
    with worker._start_budget("one", 0.05, None):
        pass
    assert not given_up.wait(0.1)
