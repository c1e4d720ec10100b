"""The actor pool of a run: its upper bound, the replicas that wait for devices, and the replicas to end.

Ray Data sizes its own pools for one job on a cluster. Here a pool is also bounded by the open rows and by the job's
share of a cluster, and an autoscaler is asked for the replicas instead of for throughput.
"""

import math
from collections.abc import Iterable
from typing import Any

import ray
import ray.data

from magbatch.engines.defaults import DEVICES_A_NODE
from magbatch.fleet.ray_private import ActorPool, Execution, actor_id, is_alive
from magbatch.replica.board import Snapshot, State
from magbatch.spec import ReplicasSpec


class Pool:
    """The pool of a dataset that is about to run.

    Each job sees the whole cluster, and `sharing` divides it. Ray Data would divide each node among the jobs in
    whole devices, so a second job would get nothing from nodes with one GPU. Ray Data would also ask an autoscaler for
    nodes by measured throughput, ignore labels, and keep the nodes until the job ends.

    Args:
        dataset: The dataset whose actor pool is controlled.
        replicas: The spec's `replicas`.
        rows_at_once: Rows that fill all engine slots of one replica.
        shared: Whether other jobs may use the same cluster; False for a local Ray.
    """

    def __init__(self, dataset: ray.data.Dataset, replicas: ReplicasSpec, rows_at_once: float, *, shared: bool) -> None:
        self._replicas, self._rows_at_once, self._shared = replicas, rows_at_once, shared
        self._execution = Execution(dataset)
        self._controlled: list[ActorPool] = []
        self._retiring: set[str] = set()

    def waiting(self, snapshot: Snapshot) -> int:
        """Replicas that Ray was asked for and that have no devices yet."""
        pending = sum(pool.pending for pool in self._pools())
        return max(0, pending - snapshot.count(State.STARTING))

    def bound(self, rows: int, cap: int | None) -> None:
        """Bound the replicas, waiting ones included, by the open rows; Ray Data releases idle ones above the bound.

        Args:
            rows: Number of open rows of the run.
            cap: Replicas that the job's share of its cluster allows; None if no other job waits.
        """
        useful = math.ceil(rows / self._rows_at_once)
        most = min(self._replicas.max, useful if cap is None else min(useful, cap))
        size = max(1, self._replicas.min, most)
        for pool in self._pools():
            pool.set_max_size(size)

    def retire(self, actors: Iterable[str]) -> None:
        """Give no more shards to these actors, and release each as soon as it has none.

        Args:
            actors: Ray's ids.
        """
        self._retiring.update(actors)

    def running(self, actor: str) -> Any:
        """The handle of an actor whose process runs; None if it is gone, or starts.

        Args:
            actor: Ray's id.
        """
        if not is_alive(actor):
            return None
        handles = (handle for pool in self._pools() for handle in pool.handles())
        return next((handle for handle in handles if actor_id(handle) == actor), None)

    def shutdown(self) -> None:
        """End the execution, and its threads."""
        self._execution.shutdown()

    def _pools(self) -> list[ActorPool]:
        pools = list(self._execution.pools())
        if pools and not self._controlled:
            self._controlled = pools
            for pool in pools:
                pool.retire(self._retiring)
            if self._shared:
                self._execution.steer_autoscaler(self._wanted, self._budget)
        return pools

    def _wanted(self) -> list[dict[str, float]]:
        """Bundles of resources to ask an autoscaler for: one for each replica that runs or waits.

        Such a request has no labels. So nothing is asked for with preferred nodes or replicas on several nodes:
        there, the autoscaler sees the actors and placement groups that wait.
        """
        if self._replicas.prefer or self._replicas.gpus > DEVICES_A_NODE:
            return []
        devices = {"CPU": self._replicas.cpus} | ({"GPU": float(self._replicas.gpus)} if self._replicas.gpus else {})
        return [devices] * sum(pool.size for pool in self._controlled)

    def _budget(self) -> dict[str, float]:
        """The cluster's resources, and room to ask for as many replicas again: their nodes may be added soon."""
        there = ray.cluster_resources()
        more = max(1, sum(pool.running for pool in self._controlled))
        cpus = there.get("CPU", 0.0) + more * self._replicas.cpus
        gpus = there.get("GPU", 0.0) + more * self._replicas.gpus
        return dict(there) | {"CPU": cpus, "GPU": gpus}
