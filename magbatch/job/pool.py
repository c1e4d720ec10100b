"""Ray Data's actor pool while it runs: how many replicas it waits for, and how many it may have.

Ray Data has no public way to either (Ray 2.60, which is pinned); what is private of it is used here and nowhere else.
"""

from dataclasses import replace
from typing import Any

import ray
import ray.data
from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

from magbatch.job.board import Snapshot, State
from magbatch.spec import ReplicasSpec


class Pool:
    """The pool of a dataset that is about to run.

    Args:
        dataset: It.
        replicas: The spec's.
        shared: Other jobs work on this cluster: each sees all of it, and `shares` tells them apart. Ray Data would give
            each its part of every node, in whole devices: of nodes with one GPU the second job would have none.
    """

    def __init__(self, dataset: ray.data.Dataset, replicas: ReplicasSpec, *, shared: bool) -> None:
        self._replicas, self._shared = replicas, shared
        self._executor: Any = None
        create = dataset._create_executor

        def created() -> Any:
            self._executor = create()
            return self._executor

        dataset._create_executor = created

    def waiting(self, snapshot: Snapshot) -> int:
        """Replicas that Ray is asked for, and that have no place; those that were given back among them."""
        asked: int = sum(pool.num_pending_actors() + pool.num_restarting_actors() for pool in self._pools())
        return max(0, asked - snapshot.count(State.STARTING))

    def cap(self, most: int | None) -> None:
        """Have at most so many replicas, those that wait included; None gives the spec's number back."""
        size = self._replicas.max if most is None else max(1, self._replicas.min, min(most, self._replicas.max))
        for pool in self._pools():
            if pool.max_size() != size:
                pool._config = replace(pool._config, max_size=size)

    def shutdown(self) -> None:
        """End the execution, and its threads."""
        if self._executor is not None:
            self._executor.shutdown(force=True)

    def _pools(self) -> list[Any]:
        topology = getattr(self._executor, "_topology", None) or {}
        autoscaler = getattr(self._executor, "_cluster_autoscaler", None)
        if self._shared and autoscaler is not None:
            autoscaler.get_total_resources = _whole_cluster
        return [pool for operator in list(topology) for pool in operator.get_autoscaling_actor_pools()]


def _whole_cluster() -> ExecutionResources:
    return ExecutionResources.from_resource_dict(ray.cluster_resources())
