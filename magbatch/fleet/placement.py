"""The devices of replicas: the request to Ray, the number of open shards, and the reason for a wait."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from magbatch.counts import counted
from magbatch.engines.defaults import DEVICES_A_NODE
from magbatch.fleet.ray_private import free_resources
from magbatch.replica.board import Snapshot, State
from magbatch.spec import ReplicasSpec

# Rows of open shards for each engine slot. If 1% of rows are 100 times as long as the rest, they fill half of the
# slots. While a long row is answered, the other half passes 50 rows a slot, and the long row may keep all their shards
# open.
SLOTS_OF_SHARDS = 64
MIN_OPEN_SHARDS = 4
MAX_OPEN_SHARDS = 256
# Upper bound for the open shards of a replica at maximum prompt length. Beyond it the object store fills up, replicas
# never look full, and the pool stops growing.
MAX_OPEN_BYTES = 4 << 30
TOKEN_BYTES = 4
MAX_BLOCKS_AHEAD, MIN_BLOCKS_AHEAD = 16, 2
MAX_BYTES_AHEAD = 256 << 20  # bytes that one read task makes ahead at maximum prompt length
MAX_OPEN_IMAGE_SHARDS = 64  # shards of 32 rows of 7 MB: 14 GB if every image has the largest size
UNPLACED_S = 15.0  # wait for devices after which a person is told the reason
UNPLACED_LOOK_S = 2.0  # time between two looks at the cluster while replicas wait

Node = tuple[dict[str, str], dict[str, float]]
"""Labels of a node, and its resources: CPU, GPU and so on."""


def open_shards(
    slots: int, shard_rows: int, num_shards: int, max_replicas: int, prompt_tokens: int, *, images: bool
) -> int:
    """Shards that one replica holds at once.

    The number is so large that shards held open by a few long rows do not keep other rows from the engine. In a
    small job it leaves shards for the other replicas. Ray's object store keeps the block of an open shard, with its
    decoded images, so there are fewer with images.

    Example: 256 shards would suit the engine. Half of a replica's fair share of 64 shards is 8. But twice as many rows

    as slots need 9, which is the least:

    >>> open_shards(slots=64, shard_rows=16, num_shards=64, max_replicas=4, prompt_tokens=40_000, images=False)
    9

    Args:
        slots: Engine slots of the replica.
        shard_rows: Mean rows of a shard.
        num_shards: Open shards of the job.
        max_replicas: Most replicas of the job.
        prompt_tokens: Most tokens of a prompt.
        images: Whether rows may have images, which make blocks large.
    """
    wanted = math.ceil(SLOTS_OF_SHARDS * slots / shard_rows)
    fair = math.ceil(num_shards / (2 * max_replicas)) if max_replicas > 1 else num_shards
    least = math.ceil(2 * slots / shard_rows) + 1
    room = MAX_OPEN_BYTES // (TOKEN_BYTES * prompt_tokens * shard_rows)
    most = min(room, MAX_OPEN_IMAGE_SHARDS if images else MAX_OPEN_SHARDS)
    return max(MIN_OPEN_SHARDS, min(most, wanted, max(fair, least)))


def blocks_ahead(shard_rows: int, prompt_tokens: int, *, plain: bool) -> int:
    """Shards that one read task makes before Ray Data takes the first of them.

    Args:
        shard_rows: Mean rows of a shard.
        prompt_tokens: Most tokens of a prompt.
        plain: Whether a row is only a prompt, without images and carried columns, whose size is not known in advance.
    """
    room = MAX_BYTES_AHEAD // (TOKEN_BYTES * prompt_tokens * shard_rows)
    return max(MIN_BLOCKS_AHEAD, min(MAX_BLOCKS_AHEAD, room)) if plain else MIN_BLOCKS_AHEAD


def remote_args(replicas: ReplicasSpec, nodes: Callable[[], Iterable[Node]] | None = None) -> dict[str, Any]:
    """Ray's arguments for the actor of a replica: its devices, and the nodes that it prefers.

    The devices are on one node, up to DEVICES_A_NODE of them; more are one placement group over several nodes.

    Args:
        replicas: The spec's `replicas`.
        nodes: Function that gives the nodes of the cluster, with their free resources; None asks Ray.
    """
    gpus, cpus = replicas.gpus, replicas.cpus
    selectors = [shape.selector for shape in replicas.prefer]
    if gpus <= DEVICES_A_NODE:
        args: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        if selectors:
            # Ray takes the first choice that has room, an autoscaler the first choice for which it can add a node.
            args["label_selector"] = selectors[0]
            args["fallback_strategy"] = [{"label_selector": selector} for selector in selectors[1:]]
        return args

    def strategy() -> dict[str, Any]:
        # vLLM's Ray executor puts one worker into each bundle; the replica itself sits in the first.
        bundles: list[dict[str, float]] = [{"GPU": 1.0, "CPU": cpus}, *({"GPU": 1.0} for _ in range(gpus - 1))]
        # A placement group has no second choice (Ray 2.60), so the choice is made here, when Ray starts a replica.
        chosen = [choose(selectors, gpus, (nodes or free_nodes)())] * gpus if selectors else None
        group = placement_group(bundles, strategy="PACK", bundle_label_selector=chosen)
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        }

    return {"num_cpus": cpus, "num_gpus": 0, "ray_remote_args_fn": strategy}


def choose(selectors: list[dict[str, str]], gpus: int, nodes: Iterable[Node]) -> dict[str, str]:
    """The first choice whose nodes have enough free GPUs together; if none has, the first of all, for an autoscaler.

    Args:
        selectors: Node labels of each choice, the best first.
        gpus: GPUs of one replica.
        nodes: Nodes of the cluster, with their free resources.
    """
    there = list(nodes)
    for selector in selectors:
        if sum(free.get("GPU", 0.0) for labels, free in there if selector.items() <= labels.items()) >= gpus:
            return selector
    return selectors[0]


def free_nodes() -> list[Node]:
    """The live nodes of the cluster, with their free resources."""
    free = free_resources()
    return [(node["Labels"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


class PlacementNotice:
    """Message that tells why replicas have no devices: once they have waited a while, and when the reason changes.

    Args:
        replicas: The spec's `replicas`.
        cluster: Function that gives the cluster's resources, all and free; None asks Ray.
        labels: Function that gives the labels of each node; None asks Ray.
        clock: Function that gives the time in seconds.
    """

    def __init__(
        self,
        replicas: ReplicasSpec,
        cluster: Callable[[], tuple[dict[str, float], dict[str, float]]] | None = None,
        labels: Callable[[], list[dict[str, str]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas, self._clock = replicas, clock
        self._cluster = cluster or (lambda: (ray.cluster_resources(), ray.available_resources()))
        self._labels = labels or (lambda: [node["Labels"] for node in ray.nodes() if node["Alive"]])
        self._since = self._looked = clock()
        self._placed = 0
        self._said: tuple[Any, ...] | None = None

    def check(self, snapshot: Snapshot, waiting: int = 0) -> str | None:
        """A line for a person, or None if there is nothing new to say.

        Args:
            snapshot: State of the fleet at this moment.
            waiting: Replicas that Ray was asked for and that have no devices.
        """
        now = self._clock()
        placed = snapshot.replicas + snapshot.count(State.STARTING)
        if placed != self._placed:  # a replica that has just got devices may still count as waiting
            self._placed, self._since = placed, now
        if placed and not waiting:
            self._since, self._said = now, None
            return None
        if now - self._since < UNPLACED_S or now - self._looked < UNPLACED_LOOK_S:
            return None
        self._looked = now
        total, free = self._cluster()
        # While replicas work, free resources change all the time and mean nothing.
        state = (waiting, total) if placed else (total, free)
        if state == self._said:
            return None
        self._said = state
        return unplaced(self._replicas, total, free, self._labels(), placed=placed, waiting=waiting)


def unplaced(
    replicas: ReplicasSpec,
    total: dict[str, float],
    free: dict[str, float],
    labels: Iterable[dict[str, str]] = (),
    *,
    placed: int = 0,
    waiting: int = 0,
) -> str:
    """A line on the devices that one replica asks for and that the cluster has.

    Args:
        replicas: The spec's `replicas`.
        total: Resources of the cluster.
        free: Free resources of the cluster.
        labels: Labels of each node.
        placed: Replicas that have devices.
        waiting: Replicas that have none.
    """
    gpus, cpus = replicas.gpus, replicas.cpus
    kinds = {"GPU": float(gpus), "CPU": cpus} if gpus else {"CPU": cpus}

    def amount(kind: str, number: float) -> str:
        return f"{number:g} {kind}{'' if number == 1 else 's'}"

    wanted = " and ".join(amount(kind, number) for kind, number in kinds.items())
    has = ", ".join(f"{amount(kind, total.get(kind, 0.0))} ({free.get(kind, 0.0):g} free)" for kind in kinds)
    short = any(total.get(kind, 0.0) < number for kind, number in kinds.items())
    if replicas.prefer:
        there = list(labels)
        counts = [sum(shape.selector.items() <= one.items() for one in there) for shape in replicas.prefer]
        nodes = (f"{shape} ({count} here)" for shape, count in zip(replicas.prefer, counts, strict=True))
        wanted += f" on a node of {', or '.join(nodes)}"
        short = short or not any(counts)
    who = f"{placed} of {counted(placed + waiting, 'replica')} have devices" if placed else "no replica has devices yet"
    return f"{who}: each asks for {wanted}, the cluster has {has}; waiting for " + (
        "nodes to be added" if short or placed else "devices to become free, or for a new replica to start"
    )
