"""Where replicas are: what one asks Ray for, how much it holds at once, and what is said while none has a place."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from magbatch.counts import counted
from magbatch.engines.defaults import DEVICES_A_NODE
from magbatch.replica.board import Snapshot, State
from magbatch.spec import ReplicasSpec

# Rows of open shards, in slots. Where 1% of rows are 100 times as long as the others, half of the slots are theirs, and
# while one of them is answered, the other half takes 50 times the slots' worth of rows: it holds all their shards open.
SLOTS_OF_SHARDS = 64
MIN_OPEN_SHARDS = 4
MAX_OPEN_SHARDS = 256
# Of the open shards where every prompt is as long as it may be: a pool grows when its replicas are full, and they never
# would be where the object store has no room.
MAX_OPEN_BYTES = 4 << 30
TOKEN_BYTES = 4
MAX_BLOCKS_AHEAD, MIN_BLOCKS_AHEAD = 16, 2
MAX_BYTES_AHEAD = 256 << 20  # of one read task, where every prompt is as long as it may be
MAX_OPEN_IMAGE_SHARDS = 64  # x 32 rows x 7 MB: 14 GB where every image has the largest size
UNPLACED_S = 15.0  # without any replica, until it is said why
UNPLACED_LOOK_S = 2.0  # between two looks at the cluster meanwhile

Node = tuple[dict[str, str], dict[str, float]]
"""Labels of a node, and what it has."""


def open_shards(
    slots: int, shard_rows: int, num_shards: int, max_replicas: int, prompt_tokens: int, *, images: bool
) -> int:
    """Shards that one replica holds at once; `prompt_tokens` is the most that a prompt may have.

    Enough that shards held open by a few long rows do not keep the engine from others, and, in a
    small job, no more than leaves work for the other replicas. Ray's object store keeps the block of
    an open shard, decoded images included: with images there are fewer.
    """
    wanted = math.ceil(SLOTS_OF_SHARDS * slots / shard_rows)
    fair = math.ceil(num_shards / (2 * max_replicas)) if max_replicas > 1 else num_shards
    least = math.ceil(2 * slots / shard_rows) + 1
    room = MAX_OPEN_BYTES // (TOKEN_BYTES * prompt_tokens * shard_rows)
    most = min(room, MAX_OPEN_IMAGE_SHARDS if images else MAX_OPEN_SHARDS)
    return max(MIN_OPEN_SHARDS, min(most, wanted, max(fair, least)))


def blocks_ahead(shard_rows: int, prompt_tokens: int, *, plain: bool) -> int:
    """Shards that one read task makes before the first of them is taken.

    Args:
        shard_rows: Rows of a shard.
        prompt_tokens: The most that a prompt may have.
        plain: A row is its prompt alone: how much pictures and carried columns hold is not known beforehand.
    """
    room = MAX_BYTES_AHEAD // (TOKEN_BYTES * prompt_tokens * shard_rows)
    return max(MIN_BLOCKS_AHEAD, min(MAX_BLOCKS_AHEAD, room)) if plain else MIN_BLOCKS_AHEAD


def remote_args(replicas: ReplicasSpec, nodes: Callable[[], Iterable[Node]] | None = None) -> dict[str, Any]:
    """Ray's arguments for a replica: its devices, on one node where one holds them, of those that it prefers.

    Args:
        replicas: The spec's.
        nodes: Gives the nodes of the cluster, with what is free on them.
    """
    gpus, cpus = replicas.gpus, replicas.cpus
    selectors = [shape.selector for shape in replicas.prefer]
    if gpus <= DEVICES_A_NODE:
        args: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        if selectors:
            # Ray takes the first that has room, the autoscaler the first that it can add.
            args["label_selector"] = selectors[0]
            args["fallback_strategy"] = [{"label_selector": selector} for selector in selectors[1:]]
        return args

    def strategy() -> dict[str, Any]:
        # vLLM's Ray executor puts one worker into each bundle; the replica itself sits in the first.
        bundles: list[dict[str, float]] = [{"GPU": 1.0, "CPU": cpus}, *({"GPU": 1.0} for _ in range(gpus - 1))]
        # A placement group has no second choice (Ray 2.60): it is made here, when the replica is asked for.
        chosen = [choose(selectors, gpus, (nodes or free_nodes)())] * gpus if selectors else None
        group = placement_group(bundles, strategy="PACK", bundle_label_selector=chosen)
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        }

    return {"num_cpus": cpus, "num_gpus": 0, "ray_remote_args_fn": strategy}


def choose(selectors: list[dict[str, str]], gpus: int, nodes: Iterable[Node]) -> dict[str, str]:
    """The first labels whose nodes have so many GPUs free together; else the first of all, for an autoscaler to add."""
    there = list(nodes)
    for selector in selectors:
        if sum(free.get("GPU", 0.0) for labels, free in there if selector.items() <= labels.items()) >= gpus:
            return selector
    return selectors[0]


def free_nodes() -> list[Node]:
    """The nodes of the cluster that live, with what is free on them."""
    free = available_resources_per_node()
    return [(node["Labels"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


class PlacementNotice:
    """Says why replicas have no place, when that has been so for a while; again only what has changed.

    Args:
        replicas: The spec's.
        cluster: Gives what the cluster has in all, and what is free.
        labels: Gives the labels of its nodes.
    """

    def __init__(
        self,
        replicas: ReplicasSpec,
        cluster: Callable[[], tuple[dict[str, float], dict[str, float]]] | None = None,
        labels: Callable[[], list[dict[str, str]]] | None = None,
    ) -> None:
        self._replicas = replicas
        self._cluster = cluster or (lambda: (ray.cluster_resources(), ray.available_resources()))
        self._labels = labels or (lambda: [node["Labels"] for node in ray.nodes() if node["Alive"]])
        self._since = self._looked = time.monotonic()
        self._placed = 0
        self._said: tuple[Any, ...] | None = None

    def look(self, snapshot: Snapshot, waiting: int = 0) -> str | None:
        """What a person should be told now.

        Args:
            snapshot: Of the board.
            waiting: Replicas that Ray was asked for and that have no place.
        """
        now = time.monotonic()
        placed = snapshot.replicas + snapshot.count(State.STARTING)
        if placed != self._placed:  # who has just got a place may still be among those that wait
            self._placed, self._since = placed, now
        if placed and not waiting:
            self._since, self._said = now, None
            return None
        if now - self._since < UNPLACED_S or now - self._looked < UNPLACED_LOOK_S:
            return None
        self._looked = now
        total, free = self._cluster()
        # What is free comes and goes all the time where replicas work; it says something where none does.
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
    """What one replica asks for, and what the cluster has."""
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
    who = f"{placed} of {counted(placed + waiting, 'replica')} have a place" if placed else "no replica has a place yet"
    return f"{who}: one asks for {wanted}, the cluster has {has}; waiting for " + (
        "nodes to be added" if short or placed else "room, or for a replica that has just got it to start"
    )
