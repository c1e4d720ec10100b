"""A slot has a number, and the replacement of its replica takes it; what replicas did stays counted in it."""

from magbatch.fleet.slots import SILENT_REPLICA_S, Occupant, SlotTable
from magbatch.replica.board import Load, State, Usage
from magbatch.replica.losses import Home
from magbatch.totals import Totals

HOME = Home("a (10.0.0.1)", "/logs/1.err")


def serve(slots: SlotTable, name: str, now: float, load: Load | None = None) -> None:
    number = slots.number(name)
    assert number is not None
    slots.report(number, Totals(answered=1), Usage(commits=1), load or Load(), now)


def test_the_same_actor_then_a_lost_replica_then_a_new_number() -> None:
    slots = SlotTable(600.0)
    assert [slots.join(name, name, HOME, 0.0) for name in ("one", "two")] == [0, 1]
    assert slots.join("one again", "one", HOME, 1.0) == 0
    slots.left("two", 2.0)
    assert slots.join("three", "three", HOME, 3.0) == 1
    assert slots.join("four", "four", HOME, 3.0) == 2
    assert (slots.number("two"), slots.occupant("two")) == (None, None)
    assert [slot.joins for slot in slots.shown(4.0)] == [2, 2, 1]


def test_what_replicas_did_adds_up_in_their_slot() -> None:
    slots = SlotTable(600.0)
    slots.join("one", "actor", HOME, 0.0)
    serve(slots, "one", 5.0, Load(in_flight=3, finished=1))
    assert slots.rows_at_hand(6.0) == 4
    slots.join("two", "actor", HOME, 10.0)
    serve(slots, "two", 12.0)
    (slot,) = slots.shown(20.0)
    assert (slot.done.answered, slot.usage.commits, slot.seconds, slot.state) == (2, 2, 20.0, State.SERVING)
    assert (slots.rows_at_hand(20.0), slots.any_up(20.0)) == (0, True)
    (loss,) = slots.losses
    assert (slots.lost, loss.why.startswith("its process was killed")) == (1, True)


def test_the_replicas_that_came_last_are_recalled_and_only_those_that_serve() -> None:
    slots = SlotTable(600.0)
    for now, name in enumerate(("one", "two", "three", "starting")):
        slots.join(name, name, HOME, float(now))
        if name != "starting":
            serve(slots, name, float(now))
    assert slots.recall(2, 5.0) == ["three", "two"]
    assert slots.recall(2, 5.0) == ["one"], "two are on their way already"


def test_the_states_of_a_replica() -> None:
    replica = Occupant("one", "actor", joined=0.0, seen=0.0)
    assert [replica.state(now, 60.0) for now in (59.0, 60.0)] == [State.STARTING, State.LOST]
    assert replica.held_s(100.0, 60.0) == 60.0
    replica.serves, replica.seen = True, 100.0
    assert [replica.state(100 + now, 60.0) for now in (29.0, 30.0)] == [State.SERVING, State.LOST]
    assert replica.held_s(1000.0, 60.0) == 100.0 + SILENT_REPLICA_S
    replica.left, replica.seen = True, 110.0
    assert (replica.state(111.0, 60.0), replica.held_s(1000.0, 60.0)) == (State.LOST, 110.0)
