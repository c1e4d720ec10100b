"""A fleet is measured from its first replica to its last commit, and each snapshot reaches every observer."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from magbatch.errors import JobError
from magbatch.jobs.serving import Observers, Serving
from magbatch.replica.board import Snapshot
from magbatch.totals import Totals


class Recorder:
    """Stands for every observer; its `check` is that of a lease, and of dead letters."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: JobError | None = None
        self.progress = SimpleNamespace(observe=lambda snapshot: self.calls.append("progress"))

    def observe(self, snapshot: Snapshot) -> None:
        self.calls.append("log")

    def show(self) -> None:
        self.calls.append("line")

    def say(self, message: str) -> None:
        self.calls.append(message)

    def check(self, *seen: Any) -> JobError | None:
        self.calls.append("failures" if seen else "lease")
        return self.error


def serving(failures: bool = True) -> tuple[Serving, Recorder]:
    recorder: Any = Recorder()
    return Serving(Observers(recorder, recorder, recorder, recorder if failures else None), Totals()), recorder


def test_a_snapshot_reaches_every_observer_in_order() -> None:
    fleet, recorder = serving()
    assert fleet.watch(Snapshot()) is None
    assert recorder.calls == ["progress", "log", "line", "lease", "failures"]
    fleet.say("a word")
    assert recorder.calls[-1] == "a word"


def test_too_many_dead_letters_end_the_fleet_unless_they_are_not_judged() -> None:
    fleet, recorder = serving()
    recorder.error = JobError("too many")
    assert fleet.watch(Snapshot()) is recorder.error
    fleet, recorder = serving(failures=False)
    recorder.error = JobError("too many")
    assert fleet.watch(Snapshot()) is None


def test_time_counts_from_the_first_replica_to_the_last_commit() -> None:
    fleet, _ = serving()
    made = fleet.since
    fleet.watch(Snapshot(starting=True))
    assert fleet.since == made
    up = replace(Snapshot(), starting=False)
    fleet.watch(up)
    since = fleet.since
    assert since > made
    fleet.watch(replace(up, done=Totals(answered=3)))
    until = fleet.until
    assert until > since
    fleet.watch(replace(up, done=Totals(answered=3)))
    assert (fleet.since, fleet.until) == (since, until)
