"""Replicas ask Ray for devices on the nodes that they prefer, and a person is told why they have none."""

import doctest
import math
from typing import Any

import pytest

from magbatch.fleet import placement
from magbatch.fleet.placement import (
    MAX_OPEN_BYTES,
    MAX_OPEN_IMAGE_SHARDS,
    MAX_OPEN_SHARDS,
    MIN_OPEN_SHARDS,
    SLOTS_OF_SHARDS,
    blocks_ahead,
    choose,
    open_shards,
    remote_args,
    unplaced,
)
from magbatch.replica.board import Slot, Snapshot, State
from magbatch.spec import ReplicasSpec

H100, A100 = {"ray.io/accelerator-type": "H100"}, {"ray.io/accelerator-type": "A100"}
SPOT = {"ray.io/market-type": "spot"}
PREFER = [{"accelerator": "H100", "market": "spot"}, {"accelerator": "A100"}]


def replicas(**fields: Any) -> ReplicasSpec:
    return ReplicasSpec.model_validate({"min": 0, "max": 40} | fields)


def test_ray_is_asked_for_the_best_nodes_first() -> None:
    assert remote_args(replicas()) == {"num_cpus": 1.0, "num_gpus": 1}
    assert remote_args(replicas(prefer=PREFER)) == {
        "num_cpus": 1.0,
        "num_gpus": 1,
        "label_selector": H100 | SPOT,
        "fallback_strategy": [{"label_selector": A100}],
    }
    assert remote_args(replicas(gpus=8)) == {"num_cpus": 1.0, "num_gpus": 8}, "of one node"
    several = remote_args(replicas(gpus=16))
    assert (several["num_gpus"], callable(several["ray_remote_args_fn"])) == (0, True)


def test_a_group_of_devices_goes_where_there_is_room_for_it() -> None:
    selectors = [H100 | SPOT, A100]
    nodes = [(H100 | SPOT | {"zone": "a"}, {"GPU": 1.0}), (H100, {"GPU": 8.0}), (A100, {"GPU": 2.0})]
    assert choose(selectors, 1, nodes) == H100 | SPOT
    assert choose(selectors, 2, nodes) == A100
    assert choose(selectors, 4, nodes) == H100 | SPOT, "nobody has room: an autoscaler adds the best"


def test_it_says_what_is_asked_for_and_what_there_is() -> None:
    assert unplaced(replicas(gpus=2), {"CPU": 8.0, "GPU": 1.0}, {"CPU": 7.0}) == (
        "no replica has devices yet: each asks for 2 GPUs and 1 CPU, the cluster has 1 GPU (0 free), 8 CPUs (7 free); "
        "waiting for nodes to be added"
    )
    assert unplaced(replicas(gpus=0), {"CPU": 8.0}, {}).endswith(
        "8 CPUs (0 free); waiting for devices to become free, or for a new replica to start"
    )


def test_it_says_which_nodes_are_meant() -> None:
    said = unplaced(replicas(prefer=PREFER), {"CPU": 8.0, "GPU": 8.0}, {"GPU": 8.0}, [H100, {"x": "y"}])
    assert "1 GPU and 1 CPU on a node of spot H100 (0 here), or A100 (0 here), the cluster has 8 GPUs (8 free)" in said
    assert said.endswith("waiting for nodes to be added")


def test_a_pool_that_cannot_grow_says_so() -> None:
    said = unplaced(replicas(), {"CPU": 8.0, "GPU": 2.0}, {}, placed=2, waiting=3)
    assert said.startswith(
        "2 of 5 replicas have devices: each asks for 1 GPU and 1 CPU, the cluster has 2 GPUs (0 free)"
    )


def test_it_is_said_after_a_while_and_again_only_when_it_changes() -> None:
    now, total, free = [1000.0], {"GPU": 2.0, "CPU": 2.0}, {"CPU": 1.0}
    notice = placement.PlacementNotice(replicas(), lambda: (dict(total), dict(free)), lambda: [], lambda: now[0])

    def after(seconds: float, snapshot: Snapshot | None = None, waiting: int = 0) -> str | None:
        now[0] += seconds
        return notice.check(snapshot or Snapshot(), waiting)

    assert after(placement.UNPLACED_S - 1) is None
    assert "1 free" in (after(2) or "")
    assert after(60) is None
    free["CPU"] = 0.5
    assert "0.5 free" in (after(60) or "")
    one = Snapshot(slots=[Slot(0, State.SERVING)])
    assert after(1, one) is None
    assert after(60) is None, "it has just gone"
    assert after(placement.UNPLACED_S - 1) is None
    assert after(2) is not None, "again, when the only replica has gone"
    assert after(60, one, 1) is None, "a replica that has just got devices may still count as waiting"
    assert after(placement.UNPLACED_S - 1, one, 1) is None
    assert "1 of 2 replicas have devices" in (after(2, one, 1) or "")
    free["CPU"] = 0.0
    assert after(60, one, 1) is None, "what is free comes and goes where replicas work"
    total["GPU"] = 3.0
    assert "3 GPUs" in (after(60, one, 1) or "")


def test_a_replica_alone_may_hold_every_shard_open() -> None:
    """Long rows anywhere keep no other row from the engine."""
    assert open_shards(64, 62, 33, 1, 40_000, images=False) == 33
    assert open_shards(64, 62, 10_000, 1, 40_000, images=False) == math.ceil(SLOTS_OF_SHARDS * 64 / 62)


def test_in_a_small_job_a_replica_leaves_shards_to_the_others_but_fills_its_slots() -> None:
    assert open_shards(64, 16, 64, 4, 40_000, images=False) == 9  # the rows of 8 fill the slots twice
    assert open_shards(64, 16, 640, 4, 40_000, images=False) == 80
    assert open_shards(8, 128, 4, 4, 40_000, images=False) == MIN_OPEN_SHARDS


@pytest.mark.parametrize(("images", "most"), [(False, MAX_OPEN_SHARDS), (True, MAX_OPEN_IMAGE_SHARDS)])
def test_what_the_object_store_holds_is_bounded(images: bool, most: int) -> None:
    assert open_shards(256, 4, 10**6, 1, 40_000, images=images) == most


def test_very_long_prompts_leave_room_in_the_object_store() -> None:
    """A replica that cannot be full for want of room would keep its pool from growing."""
    held = open_shards(256, 128, 10**6, 40, 128_000, images=False)
    assert held < open_shards(256, 128, 10**6, 40, 40_000, images=False)
    assert held * 128 * 128_000 * 4 <= MAX_OPEN_BYTES
    assert open_shards(256, 128, 10**6, 40, 10**9, images=False) == MIN_OPEN_SHARDS


@pytest.mark.parametrize(
    ("prompt_tokens", "plain", "blocks"),
    [
        (1_000, True, 16),
        (40_000, True, 6),  # 256 rows of 160 kB each: 246 MB
        (128_000, True, 2),
        (1_000, False, 2),  # a carried column may hold a megabyte a row
    ],
)
def test_read_tasks_are_ahead_by_a_bounded_number_of_bytes(prompt_tokens: int, plain: bool, blocks: int) -> None:
    assert blocks_ahead(256, prompt_tokens, plain=plain) == blocks


def test_the_long_rows_of_a_heavy_tail_fit() -> None:
    """1% of rows 100 times as long: while a long row is answered, short rows pass through half of the slots."""
    slots, rows = 256, 128
    passing = 100 * slots / 2
    assert open_shards(slots, rows, 10**6, 40, 40_000, images=False) * rows >= passing


def test_the_worked_example_is_right() -> None:
    assert doctest.testmod(placement).failed == 0
