"""Every private name of Ray that magbatch uses, checked at the start of a run.

An upgrade of Ray may rename any of them. `check` then stops the run with one error that lists the missing names.
"""

import dis
import importlib
import inspect
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import ray

from magbatch.errors import SettingsError
from magbatch.fleet import ray_settings

if TYPE_CHECKING:
    import requests

CORE = (
    "ray._common.constants:HEAD_NODE_RESOURCE_NAME",
    "ray._private.runtime_env.constants:RAY_JOB_CONFIG_JSON_ENV_VAR",
    "ray._private.services:GCS_SERVER_EXECUTABLE",
    "ray._private.services:RAYLET_EXECUTABLE",
    "ray._private.services:find_bootstrap_address",
    "ray._private.state:actors",
    "ray._private.state:available_resources_per_node",
    "ray._raylet:AuthenticationTokenLoader.get_raw_token",
    "ray._raylet:AuthenticationTokenLoader.instance",
    "ray._raylet:Config.initialize",
    "ray.actor:ActorHandle._actor_id",
)
JOB_API = (
    "ray.job_submission:JobSubmissionClient._do_request",
    "ray.job_submission:JobSubmissionClient._headers",
    "ray.job_submission:JobSubmissionClient._server_ray_version",
)
_EXECUTION = "ray.data._internal.execution"
_POOL = f"{_EXECUTION}.operators.actor_pool_map_operator:_ActorPool"
_AUTOSCALER = "ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler:RateBasedClusterAutoscaler"
DATA = (
    "ray.data:DataContext._max_num_blocks_in_streaming_gen_buffer",
    "ray.data:Dataset._create_executor",
    "ray.data._internal.actor_autoscaler.autoscaling_actor_pool:AutoscalingActorConfig.max_size",
    f"{_AUTOSCALER}._send_resource_request",
    f"{_AUTOSCALER}.get_total_resources",
    f"{_EXECUTION}.interfaces.execution_options:ExecutionResources.from_resource_dict",
    f"{_EXECUTION}.interfaces.physical_operator:PhysicalOperator.get_autoscaling_actor_pools",
    f"{_EXECUTION}.streaming_executor:StreamingExecutor._cluster_autoscaler",
    f"{_EXECUTION}.streaming_executor:StreamingExecutor._execution_started",
    f"{_EXECUTION}.streaming_executor:StreamingExecutor._topology",
    f"{_EXECUTION}.streaming_executor:StreamingExecutor.shutdown",
    f"{_POOL}._config",
    f"{_POOL}._release_running_actor",
    f"{_POOL}._running_actors",
    f"{_POOL}._update_rank",
    f"{_POOL}.current_size",
    f"{_POOL}.max_size",
    f"{_POOL}.num_pending_actors",
    f"{_POOL}.num_restarting_actors",
    f"{_POOL}.num_running_actors",
    f"{_POOL}.scale",
    f"{_EXECUTION}.operators.actor_pool_map_operator:_ActorState.num_tasks_in_flight",
)


def check(names: Collection[str]) -> None:
    """Refuse a version of Ray that lacks private names.

    Args:
        names: Names to look for, each as `module:attribute` or `module:Class.attribute`.

    Raises:
        SettingsError: A name is missing; the message has the name and the installed version.
    """
    if missing := [name for name in names if not _exists(name)]:
        raise SettingsError(
            f"Ray {ray.__version__} is installed, but lacks {', '.join(missing)}; "
            f"install the version that magbatch needs, ray=={ray_settings.VERSION}"
        )


def _exists(name: str) -> bool:
    module, _, path = name.partition(":")
    try:
        owner: Any = importlib.import_module(module)
    except ImportError:
        return False
    *classes, last = path.split(".")
    for step in classes:
        if not hasattr(owner, step):
            return False
        owner = getattr(owner, step)
    return hasattr(owner, last) or (isinstance(owner, type) and any(_sets(one, last) for one in owner.__mro__))


def _sets(owner: type, attribute: str) -> bool:
    """Whether an attribute of instances is a field of a class, or is assigned by one of its methods."""
    if attribute in inspect.get_annotations(owner):
        return True
    functions = (one for one in vars(owner).values() if isinstance(one, FunctionType))
    return any(
        step.opname == "STORE_ATTR" and step.argval == attribute
        for function in functions
        if attribute in function.__code__.co_names  # reading the steps of every method would take 40 ms
        for step in dis.get_instructions(function)
    )


# Ray's core.


def head_resource() -> str:
    """The resource that only the head node has."""
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    return str(HEAD_NODE_RESOURCE_NAME)


def is_submitted() -> bool:
    """Whether this process is the driver of a job that was sent to the cluster with its own runtime environment."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    return RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ


def vital_processes() -> tuple[str, ...]:
    """Process names of the control store and of the raylet; agents and workers end with the raylet."""
    from ray._private.services import GCS_SERVER_EXECUTABLE, RAYLET_EXECUTABLE

    return os.path.basename(GCS_SERVER_EXECUTABLE), os.path.basename(RAYLET_EXECUTABLE)


def latest_address() -> str | None:
    """`host:port` of the cluster that was started last on this machine; None if none runs."""
    from ray._private.services import find_bootstrap_address

    address: str | None = find_bootstrap_address(None)
    return address


def raw_token() -> str:
    """The token that Ray finds in the environment or in a file, whatever RAY_AUTH_MODE says; empty if there is none.

    Raises:
        ray.exceptions.AuthenticationError: The file of RAY_AUTH_TOKEN_PATH cannot be read.
    """
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    return AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True) or ""


def read_settings_again() -> None:
    """Make Ray read RAY_AUTH_MODE again; Ray reads it once, when it is imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def free_resources() -> dict[str, dict[str, float]]:
    """Node id to the free resources of that node: CPU, GPU and so on."""
    from ray._private.state import available_resources_per_node

    found: dict[str, dict[str, float]] = available_resources_per_node()
    return found


def is_alive(actor: str) -> bool:
    """Whether Ray counts an actor as running: neither starting, nor restarting, nor dead.

    Args:
        actor: Ray's id of the actor, in hex.
    """
    from ray._private.state import actors

    return bool(actors(actor).get("State") == "ALIVE")


def actor_id(handle: Any) -> str:
    """Ray's id of an actor, in hex."""
    return str(handle._actor_id.hex())


# The job API.

Request = Callable[[dict[str, str]], "requests.Response"]
"""Function that sends one request with the given headers."""


def job_client(address: str, send: "Callable[[Request], requests.Response]", timeout_s: float) -> Any:
    """Make a `JobSubmissionClient` of Ray that sends each request through a function of the caller.

    Args:
        address: URL of the dashboard.
        send: Function that gets each request, chooses the headers, and may repeat the request.
        timeout_s: Seconds to wait for a reply; Ray's own client would wait forever.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            more.setdefault("timeout", timeout_s)

            def request(headers: dict[str, str]) -> Any:
                self._headers = headers
                return super(Client, self)._do_request(method, endpoint, **more)

            return send(request)

    return Client(address)


def server_version(client: Any) -> str | None:
    """Ray's version on the cluster, which the client asked for when it was made."""
    version: str | None = client._server_ray_version
    return version


# Ray Data.


def set_blocks_ahead(context: Any, blocks: int) -> None:
    """Set how many blocks a read task makes before Ray Data takes the first of them.

    Args:
        context: Ray Data's `DataContext`.
        blocks: Blocks of one read task that may wait.
    """
    context._max_num_blocks_in_streaming_gen_buffer = blocks


@dataclass(frozen=True, slots=True)
class ActorPool:
    """An actor pool of Ray Data while it runs.

    Attributes:
        pool: Ray Data's own pool object.
    """

    pool: Any

    @property
    def size(self) -> int:
        """Actors that run, start or wait for devices."""
        return int(self.pool.current_size())

    @property
    def running(self) -> int:
        """Actors that run, or that Ray is restarting."""
        return int(self.pool.num_running_actors())

    @property
    def pending(self) -> int:
        """Actors that start or wait for devices, for the first time or again."""
        return int(self.pool.num_pending_actors() + self.pool.num_restarting_actors())

    def set_max_size(self, size: int) -> None:
        """Bound the pool; Ray Data releases idle actors above the bound."""
        if self.pool.max_size() != size:
            self.pool._config = replace(self.pool._config, max_size=size)

    def handles(self) -> list[Any]:
        """Handles of the actors that run."""
        return list(self.pool._running_actors)

    def retire(self, actors: Collection[str]) -> None:
        """Give no more tasks to some actors, and release each as soon as it is idle.

        Two methods of Ray Data are replaced. Its executor calls both repeatedly, in its own thread.

        Args:
            actors: Ray's ids; the caller may add more later.
        """
        rank, scale = self.pool._update_rank, self.pool.scale

        def update_rank(actor: Any, state: Any, died: bool) -> None:
            rank(actor=actor, state=state, died=died or actor_id(actor) in actors)

        def scaled(request: Any) -> Any:
            for actor, state in list(self.pool._running_actors.items()):
                if state.num_tasks_in_flight == 0 and actor_id(actor) in actors:
                    self.pool._release_running_actor(actor)
            return scale(request)

        self.pool._update_rank, self.pool.scale = update_rank, scaled


class Execution:
    """The execution of one dataset: its actor pools, and its requests to an autoscaler.

    Args:
        dataset: Dataset of Ray Data that does not run yet.
    """

    def __init__(self, dataset: Any) -> None:
        self._executor: Any = None
        create = dataset._create_executor

        def created() -> Any:
            self._executor = create()
            return self._executor

        dataset._create_executor = created

    def pools(self) -> Iterator[ActorPool]:
        """The actor pools; none before the execution has started."""
        if self._executor is not None and self._executor._execution_started:
            for operator in list(self._executor._topology):
                for pool in operator.get_autoscaling_actor_pools():
                    yield ActorPool(pool)

    def steer_autoscaler(
        self, wanted: Callable[[], list[dict[str, float]]], budget: Callable[[], dict[str, float]]
    ) -> None:
        """Replace the requests of a started execution to an autoscaler, and the resources that it may use.

        Args:
            wanted: Function that gives the resources of each bundle that the cluster is to have.
            budget: Function that gives the resources that Ray Data may plan with.
        """
        from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

        autoscaler = self._executor._cluster_autoscaler
        send = autoscaler._send_resource_request
        autoscaler._send_resource_request = lambda _: send(wanted())
        autoscaler.get_total_resources = lambda: ExecutionResources.from_resource_dict(budget())

    def shutdown(self) -> None:
        """End the execution and its threads, if it was ever started."""
        if self._executor is not None:
            self._executor.shutdown(force=True)
