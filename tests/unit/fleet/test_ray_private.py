"""Every private name of Ray that magbatch uses is there; a Ray that has renamed one is refused by name."""

import inspect
import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from magbatch.errors import SettingsError
from magbatch.fleet import ray_private, ray_settings
from magbatch.fleet.ray_private import CORE, DATA, JOB_API, ActorPool, Execution, check


@pytest.mark.parametrize("name", [*CORE, *JOB_API, *DATA])
def test_each_private_name_is_in_the_installed_ray(name: str) -> None:
    check([name])


@pytest.mark.parametrize(
    "name",
    [
        "ray._private.nowhere:actors",
        "ray._private.state:actors_of_yesterday",
        "ray.data._internal.execution.streaming_executor:StreamingExecutor._topology_of_yesterday",
        "ray.data._internal.execution.streaming_executor:Executor._topology",
        "ray.actor:ActorHandle._actor_id_of_yesterday",
    ],
)
def test_a_name_that_is_gone_stops_a_run_with_the_name_and_the_version(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check([*CORE, name])
    assert str(caught.value) == (
        f"Ray {ray.__version__} is installed, but lacks {name}; install the version that magbatch needs, "
        f"ray=={ray_settings.VERSION}"
    )


def test_an_attribute_that_only_instances_have_is_found_where_it_is_set() -> None:
    assert not hasattr(ray_private.ActorPool, "_made_up")
    check(["ray.job_submission:JobSubmissionClient._headers"])  # set in the constructor of its base class


def test_what_is_replaced_is_called_as_it_was() -> None:
    from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool

    assert list(inspect.signature(_ActorPool._update_rank).parameters) == ["self", "actor", "state", "died"]
    assert len(inspect.signature(_ActorPool.scale).parameters) == 2


def test_the_pinned_version_is_the_installed_one() -> None:
    assert ray.__version__ == ray_settings.VERSION
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"ray[data,default]=={ray_settings.VERSION}"' in pyproject


def test_a_replica_is_known_by_its_process_title() -> None:
    """`deploy render` has Kubernetes tell replicas by it that their node goes."""
    from ray.data._internal.execution.operators.actor_pool_map_operator import get_map_worker_cls_name

    assert get_map_worker_cls_name("MapBatches(Worker)").startswith(f"{ray_settings.REPLICA_PROCESS}(")


def test_the_processes_that_are_watched_are_programs_of_ray() -> None:
    assert ray_private.vital_processes() == ("gcs_server", "raylet")
    folder = Path(ray.__file__).parent / "core" / "src" / "ray"
    assert {path.name for path in folder.rglob("*") if os.access(path, os.X_OK) and path.is_file()} >= {
        "gcs_server",
        "raylet",
    }


@pytest.mark.parametrize("setting", [b"prestart_worker_first_driver"])
def test_settings_of_the_core_are_known_to_it(setting: bytes) -> None:
    """The core ignores a setting that it does not know."""
    raylet = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    with open(raylet, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
        assert program.find(setting) >= 0


class FakePool:
    """The part of Ray Data's pool that is used."""

    def __init__(self) -> None:
        self._running_actors: dict[Any, Any] = {}
        self.ranked: list[tuple[str, bool]] = []
        self.released: list[str] = []
        self.scaled = 0

    def _update_rank(self, actor: Any, state: Any, died: bool) -> None:
        self.ranked.append((ray_private.actor_id(actor), died))

    def _release_running_actor(self, actor: Any) -> None:
        self.released.append(ray_private.actor_id(actor))
        del self._running_actors[actor]

    def scale(self, request: Any) -> int:
        self.scaled += 1
        return 7


def handle(name: str) -> Any:
    class Handle:
        _actor_id = SimpleNamespace(hex=lambda: name)

    return Handle()


def test_a_retired_actor_gets_no_task_and_goes_when_it_is_idle() -> None:
    pool, retiring = FakePool(), set[str]()
    busy, idle, kept = handle("busy"), handle("idle"), handle("kept")
    pool._running_actors = {one: SimpleNamespace(num_tasks_in_flight=0) for one in (idle, kept)}
    pool._running_actors[busy] = SimpleNamespace(num_tasks_in_flight=2)
    ActorPool(pool).retire(retiring)
    assert (pool.scale(None), pool.released) == (7, [])
    retiring |= {"busy", "idle"}
    for actor in (busy, kept):
        pool._update_rank(actor=actor, state=None, died=False)
    assert pool.ranked == [("busy", True), ("kept", False)], "as if it had died, so it gets no task"
    assert (pool.scale(None), pool.released) == (7, ["idle"])
    pool._running_actors[busy].num_tasks_in_flight = 0
    pool.scale(None)
    assert (pool.released, list(pool._running_actors)) == (["idle", "busy"], [kept])


def test_an_execution_has_pools_once_it_has_started() -> None:
    operator = SimpleNamespace(get_autoscaling_actor_pools=lambda: ["pool"])
    executor = SimpleNamespace(_execution_started=False, _topology=[operator], ended=[])
    executor.shutdown = lambda force: executor.ended.append(force)
    dataset = SimpleNamespace(_create_executor=lambda: executor)
    execution = Execution(dataset)
    execution.shutdown()
    assert (list(execution.pools()), executor.ended) == ([], [])
    assert dataset._create_executor() is executor
    assert list(execution.pools()) == []
    executor._execution_started = True
    assert [pool.pool for pool in execution.pools()] == ["pool"]
    execution.shutdown()
    assert executor.ended == [True]


def test_an_autoscaler_is_asked_for_what_the_caller_wants() -> None:
    sent: list[Any] = []
    autoscaler = SimpleNamespace(_send_resource_request=sent.append, get_total_resources=None)
    executor = SimpleNamespace(_execution_started=True, _topology=[], _cluster_autoscaler=autoscaler)
    dataset = SimpleNamespace(_create_executor=lambda: executor)
    execution = Execution(dataset)
    dataset._create_executor()
    execution.steer_autoscaler(lambda: [{"CPU": 2.0}], lambda: {"CPU": 8.0, "GPU": 1.0})
    autoscaler._send_resource_request([{"CPU": 999.0}])
    assert sent == [[{"CPU": 2.0}]]
    total = autoscaler.get_total_resources()
    assert (total.cpu, total.gpu) == (8.0, 1.0)
