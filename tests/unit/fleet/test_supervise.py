"""The driver's loop ends a run as its fleet, its observer and its user say."""

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import ray

from magbatch.errors import (
    ClusterError,
    EngineStartError,
    InterruptedJobError,
    JobError,
    StorageError,
    TooManyFailedError,
)
from magbatch.fleet.board import BoardState
from magbatch.fleet.supervise import Driver, DriverTiming
from magbatch.replica.board import Load, Snapshot, Usage
from magbatch.replica.losses import Home
from magbatch.totals import Totals


class FakeConsumer:
    """An execution that ends when it is told to, or after some looks of the driver."""

    def __init__(self) -> None:
        self.looks, self.is_ending, self.failure, self.waited = 3, False, None, list[float]()
        self.each_look: Callable[[], None] = lambda: None

    def start(self) -> None:
        return

    def is_alive(self) -> bool:
        return self.looks > 0

    def join(self, timeout: float) -> None:
        self.waited.append(timeout)
        self.looks -= 1
        self.each_look()

    def end(self) -> None:
        self.is_ending = True


class FakePool:
    def __init__(self) -> None:
        self.bounds: list[Any] = []
        self.handles: dict[str, Any] = {}
        self.ended = False

    def bound(self, rows: int, cap: int | None) -> None:
        self.bounds.append((rows, cap))

    def waiting(self, snapshot: Snapshot) -> int:
        return 1

    def running(self, actor: str) -> Any:
        return self.handles.get(actor)

    def shutdown(self) -> None:
        self.ended = True


class Observer:
    def __init__(self) -> None:
        self.error: JobError | None = None
        self.seen: list[Snapshot] = []
        self.said: list[str] = []

    def watch(self, snapshot: Snapshot) -> JobError | None:
        self.seen.append(snapshot)
        return self.error

    def say(self, message: str) -> None:
        self.said.append(message)


class Fake:
    """A driver's loop with a real board, and everything else set by the test."""

    def __init__(self, handle: Any, board: BoardState) -> None:
        self.state, self.board = board, handle(board)
        self.consumer, self.pool, self.observer = FakeConsumer(), FakePool(), Observer()
        self.stop = threading.Event()
        self.reason: str | None = None
        self.timing = DriverTiming()
        self.broken_process: str | None = None

    def check(self, snapshot: Snapshot, waiting: int) -> str | None:
        return self.reason

    def broken(self) -> str | None:
        return self.broken_process

    def run(self) -> Snapshot:
        made: Any = self
        return Driver(
            self.board, 10, made.consumer, made.pool, self.observer, self.stop, made, None, made, self.timing
        ).run()


@pytest.fixture
def fake(local_ray: Any, request: pytest.FixtureRequest) -> Fake:
    """The driver's loop over one replica; the parameter is the silence after which a replica is ended."""
    board = BoardState(rows=10, silence_s=getattr(request, "param", math.inf))
    board.join("one", "actor", Home("a (10.0.0.1)", "/logs/1.err"))
    return Fake(local_ray, board)


def serve(fake: Fake, rows: int = 0) -> None:
    fake.state.report("one", Totals(answered=rows), Usage(), Load())


def test_a_run_whose_execution_ends_gives_the_last_state(fake: Fake) -> None:
    serve(fake, 2)
    fake.consumer.each_look = lambda: serve(fake, 2)
    last = fake.run()
    assert (last.done.answered, len(fake.observer.seen)) == (10, 4)
    assert fake.pool.bounds == [(6, None), (4, None), (2, None)], "the open rows"
    assert not fake.pool.ended, "it has ended by itself"


def test_why_replicas_wait_goes_straight_to_the_observer(fake: Fake) -> None:
    fake.reason = "no replica has devices yet"
    fake.run()
    assert fake.observer.said == ["no replica has devices yet"] * 3
    assert fake.board.called("trouble") == []


def test_an_observers_error_ends_the_run_once_replicas_were_asked_to_stop(fake: Fake) -> None:
    serve(fake)
    fake.observer.error = TooManyFailedError("11 rows failed")
    with pytest.raises(TooManyFailedError):
        fake.run()
    assert len(fake.board.called("stop")) == 1
    assert fake.consumer.is_ending


def test_an_observers_error_comes_too_late_for_a_run_that_is_done(fake: Fake) -> None:
    serve(fake, 10)
    fake.observer.error = TooManyFailedError("11 rows failed")
    assert fake.run().done.answered == 10


def test_a_user_who_stops_the_run_is_told_what_was_committed(fake: Fake) -> None:
    serve(fake)
    fake.stop.set()
    with pytest.raises(InterruptedJobError, match="stopped; every finished row is committed"):
        fake.run()


def test_replicas_that_take_too_long_to_commit_are_told_of(fake: Fake) -> None:
    serve(fake)
    fake.consumer.looks, fake.timing = 1000, DriverTiming(stop_grace_s=0.0)
    fake.stop.set()
    with pytest.raises(InterruptedJobError, match=r"stopped before every replica had committed .* \(within 0 s\)"):
        fake.run()
    assert fake.pool.ended


def test_a_run_that_is_stopped_before_any_engine_serves_waits_for_none(fake: Fake) -> None:
    fake.consumer.looks = 1000
    fake.stop.set()
    with pytest.raises(InterruptedJobError):
        fake.run()
    assert len(fake.consumer.waited) == 2
    assert fake.pool.ended


def test_what_a_replica_has_met_ends_the_run_as_it_was_met(fake: Fake) -> None:
    serve(fake)
    fake.state.failed(StorageError("s3://b: gone"))
    with pytest.raises(StorageError, match="s3://b: gone"):
        fake.run()


def test_an_engine_that_does_not_start_speaks_for_itself_and_names_its_log(fake: Fake) -> None:
    fake.state.engine_failed("one", "CUDA out of luck")
    with pytest.raises(EngineStartError, match=r"^CUDA out of luck") as caught:
        fake.run()
    assert caught.value.__notes__ == ["The engine's log: /logs/1.err on a (10.0.0.1)"]


def test_replacements_that_do_not_start_end_a_run_without_replicas_only(fake: Fake) -> None:
    serve(fake)
    fake.state.join("two", "actor 2")
    for _ in range(3):
        fake.state.engine_failed("two", "no memory")
    fake.run()
    fake.state.left("one")
    fake.consumer.looks = 3
    with pytest.raises(EngineStartError, match="no memory"):
        fake.run()


@pytest.mark.parametrize("fake", [0.0], indirect=True)
def test_a_silent_replica_is_ended_and_a_gone_one_is_only_noted(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", lambda handle, no_restart: killed.append((handle, no_restart)))
    serve(fake)
    fake.state.announce("one", {3: ["a"]})
    fake.pool.handles = {"actor": "handle"}
    fake.run()
    assert killed == [("handle", False)]
    assert fake.state.begin(3) == (True, {"a": 1}), "its rows may be the cause"
    fake.state.join("two", "actor 2")
    fake.state.report("two", Totals(), Usage(), Load(), {4: ["b"]})
    fake.consumer.looks = 2
    fake.run()
    assert len(killed) == 1
    assert fake.state.begin(4) == (True, {}), "no row has ended a process that went with its node"
    assert "node is gone" in fake.state.snapshot().losses[-1].why


def test_a_process_of_ray_that_has_ended_ends_the_run_without_waiting_for_ray(fake: Fake) -> None:
    fake.broken_process = "Ray's raylet (process 7) was killed"
    with pytest.raises(ClusterError, match="raylet"):
        fake.run()
    assert (fake.pool.ended, fake.consumer.waited[-1]) == (False, 0.0)


def test_an_error_of_ray_data_is_the_last_line_that_it_says(fake: Fake) -> None:
    failure: Any = RuntimeError("first\nlast: no more workers\n")
    fake.consumer.failure = failure
    with pytest.raises(ClusterError, match=r"^Ray stopped the job: RuntimeError: last: no more workers$"):
        fake.run()
    fake.state.failed(StorageError("the cause"))
    fake.consumer.looks = 0
    with pytest.raises(StorageError, match="the cause"):
        fake.run()
