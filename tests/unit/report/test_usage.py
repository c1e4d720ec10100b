"""Usage of runs is added, and records of other versions are read."""

from dataclasses import asdict

from magbatch.replica.board import Slot, Snapshot, State, Usage
from magbatch.replica.losses import MOST_LOSSES, Home, Loss, LossReason
from magbatch.report.usage import JobUsage
from magbatch.totals import Totals


def test_a_fleet_uses_the_devices_of_all_its_slots() -> None:
    done = Totals(answered=3, prompt_tokens=30, reasoning_tokens=5, answer_tokens=2)
    slots = [
        Slot(0, State.SERVING, usage=Usage(commits=2, by_commit={"0.1": 2}), seconds=10.0, joins=3),
        Slot(1, State.LOST, usage=Usage(commits=1, by_commit={"0.1": 1}), seconds=5.0, joins=1),
    ]
    found = JobUsage.of(Snapshot(done, slots, False, engine_deaths=1, starved_s=0.5, input_errors=4), devices=2)
    assert found == JobUsage(30.0, 0.5, 1, 2, 4, 0, Usage(commits=3, by_commit={"0.1": 3}), 30, 7)


def test_usage_is_added_and_neither_part_changes() -> None:
    one = JobUsage(device_s=1.0, use=Usage(commits=1, by_commit={"0.1": 1}))
    other = JobUsage(device_s=2.0, restarts=3, use=Usage(commits=2, by_commit={"0.1": 1, "+Inf": 1}))
    both = one.plus(other)
    assert both == JobUsage(device_s=3.0, restarts=3, use=Usage(commits=3, by_commit={"0.1": 2, "+Inf": 1}))
    assert one == JobUsage(device_s=1.0, use=Usage(commits=1, by_commit={"0.1": 1}))


def test_a_record_of_another_version_is_read() -> None:
    record = asdict(JobUsage(device_s=1.0)) | {"later": 1}
    del record["losses"]
    record["use"]["later"] = 2
    assert JobUsage.from_dict(record) == JobUsage(device_s=1.0)


def test_the_last_losses_of_all_runs_are_kept_and_all_are_counted() -> None:
    losses = [Loss.of(float(number), 0, Home(), LossReason.NODE_GOES) for number in range(MOST_LOSSES + 5)]
    earlier, mine = JobUsage(lost=30, losses=losses[:15]), JobUsage(lost=10, losses=losses[15:])
    both = earlier.plus(mine)
    assert (both.lost, both.losses) == (40, losses[5:])
    assert JobUsage.from_dict(asdict(both)) == both
