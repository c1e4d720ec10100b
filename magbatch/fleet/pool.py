"""Ray Data's actor pool while it runs: how many replicas it waits for, how many it may have, and which are to go.

Ray Data has no public way to any of it (Ray 2.60, which is pinned); what is private of it is used here alone.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray
import ray.data
from ray._private.state import actors
from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

from magbatch.engines.defaults import DEVICES_A_NODE
from magbatch.replica.board import Snapshot, State
from magbatch.spec import ReplicasSpec


def set_blocks_ahead(context: ray.data.DataContext, blocks: int) -> None:
    """Blocks that a read task makes before Ray Data has taken the first of them."""
    name = "_max_num_blocks_in_streaming_gen_buffer"
    assert hasattr(context, name), "Ray Data calls it otherwise now"
    setattr(context, name, blocks)


class Pool:
    """The pool of a dataset that is about to run.

    On a cluster (not on a local Ray) each job sees all of it, and `shares` tells them apart: Ray Data would give each
    job its part of every node, in whole devices, so that of nodes with one GPU the second job would have none. And the
    replicas there are, with those that wait, are what an autoscaler is asked for: Ray Data itself would ask for nodes
    by the throughput that it has seen, without regard to labels, and keep them until the end of the job.

    Args:
        dataset: It.
        replicas: The spec's.
        rows_at_once: Rows that fill the slots of one replica.
        shared: It is a cluster.
    """

    def __init__(self, dataset: ray.data.Dataset, replicas: ReplicasSpec, rows_at_once: float, *, shared: bool) -> None:
        self._replicas, self._rows_at_once, self._shared = replicas, rows_at_once, shared
        self._executor: Any = None
        self._known: list[Any] = []
        self._retiring: set[str] = set()
        create = dataset._create_executor

        def created() -> Any:
            self._executor = create()
            return self._executor

        dataset._create_executor = created

    def waiting(self, snapshot: Snapshot) -> int:
        """Replicas that Ray is asked for, and that have no place."""
        asked: int = sum(pool.num_pending_actors() + pool.num_restarting_actors() for pool in self._pools())
        return max(0, asked - snapshot.count(State.STARTING))

    def bound(self, rows: int, cap: int | None) -> None:
        """Have no more replicas than the rows that are left can fill, those that wait included; idle ones go.

        Args:
            rows: That are left.
            cap: Of the job's share of its cluster; None where nobody else waits.
        """
        useful = math.ceil(rows / self._rows_at_once)
        most = min(self._replicas.max, useful if cap is None else min(useful, cap))
        size = max(1, self._replicas.min, most)
        for pool in self._pools():
            if pool.max_size() != size:
                pool._config = replace(pool._config, max_size=size)

    def retire(self, actors: Iterable[str]) -> None:
        """Give no shards to these actors any more, and release each as soon as it has none."""
        self._retiring.update(actors)

    def running(self, actor: str) -> Any:
        """The handle of an actor that Ray takes for alive; None if its process is gone, or starts.

        Args:
            actor: Ray's id.
        """
        if actors(actor).get("State") != "ALIVE":
            return None
        handles = [handle for pool in self._pools() for handle in list(pool._running_actors)]
        return next((handle for handle in handles if handle._actor_id.hex() == actor), None)

    def shutdown(self) -> None:
        """End the execution, and its threads."""
        if self._executor is not None:
            self._executor.shutdown(force=True)

    def _pools(self) -> list[Any]:
        topology = getattr(self._executor, "_topology", None) or {}
        autoscaler = getattr(self._executor, "_cluster_autoscaler", None)
        pools = [pool for operator in list(topology) for pool in operator.get_autoscaling_actor_pools()]
        if autoscaler is not None and pools and not self._known:
            self._known = pools
            for pool in pools:
                self._let_go(pool)
            if self._shared:
                send = autoscaler._send_resource_request
                autoscaler._send_resource_request = lambda _: send(self._wanted())
                autoscaler.get_total_resources = self._budget
        return pools

    def _let_go(self, pool: Any) -> None:
        """Both are called in the executor's own thread, again and again."""
        rank, scale = pool._update_rank, pool.scale

        def update_rank(actor: Any, state: Any, died: bool) -> None:
            rank(actor=actor, state=state, died=died or actor._actor_id.hex() in self._retiring)

        def scaled(request: Any) -> Any:
            for actor, state in list(pool._running_actors.items()):
                if state.num_tasks_in_flight == 0 and actor._actor_id.hex() in self._retiring:
                    pool._release_running_actor(actor)
            return scale(request)

        pool._update_rank, pool.scale = update_rank, scaled

    def _wanted(self) -> list[dict[str, float]]:
        """What the autoscaler is asked to have in all: the replicas that are there or wait, on nodes of any kind."""
        if self._replicas.prefer or self._replicas.gpus > DEVICES_A_NODE:
            return []  # such a request knows no labels; the replicas that wait are demand enough
        devices = {"CPU": self._replicas.cpus} | ({"GPU": float(self._replicas.gpus)} if self._replicas.gpus else {})
        return [devices] * sum(pool.current_size() for pool in self._known)

    def _budget(self) -> ExecutionResources:
        """The cluster, and room to ask for as many replicas again: their nodes may be there soon."""
        there = ray.cluster_resources()
        more = max(1, sum(pool.num_running_actors() for pool in self._known))
        cpus = there.get("CPU", 0.0) + more * self._replicas.cpus
        gpus = there.get("GPU", 0.0) + more * self._replicas.gpus
        return ExecutionResources.from_resource_dict(there | {"CPU": cpus, "GPU": gpus})
