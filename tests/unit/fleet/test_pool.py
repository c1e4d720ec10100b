"""A pool is bounded by the open rows and the job's share, and an autoscaler is asked for its replicas."""

from typing import Any

import pytest

from magbatch.fleet import pool as pool_module
from magbatch.fleet.pool import Pool
from magbatch.replica.board import Slot, Snapshot, State
from magbatch.spec import ReplicasSpec


class FakePool:
    """Ray Data's pool, with numbers that a test sets."""

    def __init__(self) -> None:
        self.bounds: list[int] = []
        self.size = self.running = self.pending = 0
        self.retiring: Any = None
        self.all: list[Any] = []

    def set_max_size(self, size: int) -> None:
        self.bounds.append(size)

    def handles(self) -> list[Any]:
        return self.all

    def retire(self, actors: Any) -> None:
        self.retiring = actors


class FakeExecution:
    """An execution with one pool, once it has started."""

    def __init__(self, dataset: Any) -> None:
        self.pool, self.started, self.shares = FakePool(), False, list[Any]()
        self.ended = False

    def pools(self) -> list[Any]:
        return [self.pool] if self.started else []

    def steer_autoscaler(self, wanted: Any, budget: Any) -> None:
        self.shares.append((wanted, budget))

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "Execution", FakeExecution)


def made(shared: bool = False, rows_at_once: float = 10.0, **replicas: Any) -> tuple[Pool, Any]:
    spec = ReplicasSpec.model_validate({"min": 0, "max": 8, "gpus": 1, "cpus": 2.0} | replicas)
    pool = Pool(None, spec, rows_at_once, shared=shared)
    execution: Any = pool._execution
    execution.started = True
    return pool, execution


@pytest.mark.parametrize(
    ("rows", "cap", "least", "size"),
    [
        (1000, None, 0, 8),  # replicas.max
        (35, None, 0, 4),  # as many as the rows fill
        (35, 2, 0, 2),  # the job's share
        (35, 2, 3, 3),  # replicas.min
        (0, None, 0, 1),  # Ray Data takes no 0
        (1000, 0, 0, 1),
    ],
)
def test_a_pool_is_no_larger_than_its_rows_its_share_and_its_spec(
    rows: int, cap: int | None, least: int, size: int
) -> None:
    pool, execution = made(min=least)
    pool.bound(rows, cap)
    assert execution.pool.bounds == [size]


def test_replicas_that_start_have_their_devices_and_wait_no_more() -> None:
    pool, execution = made()
    execution.pool.pending = 3
    assert pool.waiting(Snapshot()) == 3
    assert pool.waiting(Snapshot(slots=[Slot(0, State.STARTING), Slot(1, State.SERVING)])) == 2
    assert pool.waiting(Snapshot(slots=[Slot(number) for number in range(5)])) == 0


def test_nothing_waits_and_nothing_is_bounded_before_the_execution_has_started() -> None:
    pool, execution = made()
    execution.started = False
    pool.bound(1000, None)
    assert (pool.waiting(Snapshot()), execution.pool.bounds) == (0, [])


def test_actors_that_are_to_go_reach_the_pool_whenever_they_are_named() -> None:
    pool, execution = made()
    pool.retire(["early"])
    pool.bound(1, None)
    pool.retire(["late"])
    assert execution.pool.retiring == {"early", "late"}


@pytest.mark.parametrize("shared", [True, False])
def test_only_on_a_cluster_is_the_autoscaler_steered_and_once(shared: bool) -> None:
    pool, execution = made(shared=shared)
    for _ in range(3):
        pool.bound(1, None)
    assert len(execution.shares) == int(shared)


def test_an_autoscaler_is_asked_for_each_replica_that_runs_or_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module.ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0, "memory": 5.0})
    pool, execution = made(shared=True)
    pool.bound(1, None)
    execution.pool.size, execution.pool.running = 3, 2
    wanted, budget = execution.shares[0]
    assert wanted() == [{"CPU": 2.0, "GPU": 1.0}] * 3
    assert budget() == {"CPU": 16.0 + 2 * 2.0, "GPU": 2.0 + 2 * 1, "memory": 5.0}, "room for as many again"


@pytest.mark.parametrize("replicas", [{"prefer": [{"accelerator": "H100"}]}, {"gpus": 16}])
def test_a_request_without_labels_is_not_made_for_replicas_that_need_them(replicas: dict[str, Any]) -> None:
    pool, execution = made(shared=True, **replicas)
    pool.bound(1, None)
    execution.pool.size = 3
    assert execution.shares[0][0]() == []


def test_the_handle_of_an_actor_is_given_only_while_its_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[str] = set()
    monkeypatch.setattr(pool_module, "is_alive", lambda actor: actor in alive)
    monkeypatch.setattr(pool_module, "actor_id", lambda handle: handle)
    pool, execution = made()
    execution.pool.all = ["a", "b"]
    assert pool.running("a") is None
    alive.add("a")
    assert pool.running("a") == "a"
    alive.add("c")
    assert pool.running("c") is None, "not one of this pool"


def test_the_execution_ends_with_the_pool() -> None:
    pool, execution = made()
    pool.shutdown()
    assert execution.ended
