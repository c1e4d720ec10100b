"""A fleet that cannot be placed says so, once for each state of the cluster."""

import time

import pytest

from magbatch.job import fleet
from magbatch.job.board import Place, Snapshot
from magbatch.spec import parse

SPEC = """
name: test
model: {source: "builtin:tiny"}
input: {path: in, columns: {prompt: question}}
output: {path: out}
replicas: {min: 0, max: 40, gpus: 1}
"""


def test_it_says_what_is_asked_for_and_what_there_is() -> None:
    said = fleet.unplaced(2, 1.0, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 7.0})
    assert said == (
        "no replica has a place yet: one asks for 2 GPUs and 1 CPU, the cluster has 1 GPU (0 free), 8 CPUs (7 free); "
        "waiting for nodes to be added"
    )
    assert fleet.unplaced(0, 1.0, {"CPU": 8.0}, {}).endswith(
        "8 CPUs (0 free); waiting for room, or for a replica that has just got it to start"
    )


def test_it_is_said_after_a_while_and_again_only_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now, free = [time.monotonic()], {"CPU": 1.0}
    monkeypatch.setattr(fleet.time, "monotonic", lambda: now[0])
    unplaced = fleet.Unplaced(parse(SPEC), lambda: ({"CPU": 2.0}, free))

    def after(seconds: float, snapshot: Snapshot | None = None) -> str | None:
        now[0] += seconds
        return unplaced.look(snapshot or Snapshot())

    assert after(fleet.UNPLACED_S - 1) is None
    assert "1 free" in (after(2) or "")
    assert after(60) is None
    free["CPU"] = 0.5
    assert "0.5 free" in (after(60) or "")
    assert after(1, Snapshot(places=[Place(0)])) is None
    assert after(fleet.UNPLACED_S - 1) is None
    assert after(2) is not None, "again, when the only replica has gone"
