"""A replica's process starts its engine in time, finds its board, and ends by itself. Rows are in test_replica.py."""

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from magbatch.fleet.board import BoardState
from magbatch.fleet.worker import RayBoard, uncollected
from magbatch.replica.board import Load, Order, Usage
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
        await board.strike("one", {0: ["a"]}, "its engine died")
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


GIVE_UP = """
import threading, time
from types import SimpleNamespace
from magbatch.fleet import worker

def remote(*_):
    raise ConnectionError("the board is gone")

board = SimpleNamespace(engine_failed=SimpleNamespace(remote=remote))
threading.Timer(0.0, worker._give_up_start, ("one", 5, board)).start()
time.sleep(60)  # the engine starts
print("still there")
"""


def test_a_start_that_never_ends_is_given_up_although_the_board_is_gone() -> None:
    """The start runs in a process of its own, which it ends."""
    done = subprocess.run(
        [sys.executable, "-c", GIVE_UP], env=os.environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
