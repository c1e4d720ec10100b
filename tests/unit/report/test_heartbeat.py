"""The run's own account of itself: for another machine, and for the next run."""

import json
import threading
import time
from typing import Any

import pytest
from support.small_job import SmallJob

from magbatch.errors import LeaseError, StorageError
from magbatch.jobs.status import status
from magbatch.ledger.layout import RECORD
from magbatch.replica.board import Slot, Snapshot, State, Usage
from magbatch.report.beat import BeatTiming
from magbatch.report.heartbeat import Heartbeat, earlier
from magbatch.report.progress import JobProgress
from magbatch.report.record import ALIVE_S, last_record
from magbatch.report.usage import JobUsage
from magbatch.storage import Store, open_store
from magbatch.totals import Totals

DONE = Totals(answered=2, failed=1, records=2, reasoning_tokens=40, squared_tokens=800, by_status={"truncated": 1})
FLEET = Snapshot(DONE, [Slot(0, State.SERVING, DONE, Usage(commits=3), seconds=50)], False, engine_deaths=1)


def progress(job: SmallJob, spent: JobUsage | None = None) -> JobProgress:
    return JobProgress(job.spec(), 6, 0, spent)


OFTEN = BeatTiming(interval_s=0.01)


def nobody() -> None:
    return


def test_a_run_tells_another_machine_how_it_goes(either_job: SmallJob) -> None:
    job = either_job
    job.ask(6)
    job.begin()
    assert status(job.output).run is None
    following = progress(job)
    following.observe(FLEET)
    with Heartbeat(open_store(job.output, quick=True), following, nobody, print, OFTEN).beating():
        deadline = time.monotonic() + 30
        while status(job.output).run is None:
            assert time.monotonic() < deadline
        run = status(job.output).to_dict()["run"]
        assert run["alive"] is True
        assert (run["done"], run["failed"], run["truncated"]) == (3, 1, 1)
        assert run["replicas"] == {"starting": 0, "serving": 1, "lost": 0}
        assert run["spent"]["device_s"] == 50
        assert "history" not in run
    assert status(job.output).to_dict()["run"]["alive"] is False


def test_a_record_that_grows_old_is_that_of_a_run_that_died(job: SmallJob) -> None:
    job.ask(6)
    job.begin()
    store = open_store(job.output)
    with Heartbeat(store, progress(job), nobody, print).beating():
        pass
    found = json.loads(store.read(RECORD)) | {"running": True}
    for age, alive in ((0, True), (ALIVE_S - 5, True), (ALIVE_S + 5, False)):
        elsewhere = {"at": time.time() - age, "place": "another machine"}
        store.write(RECORD, json.dumps(found | elsewhere).encode())
        run = status(job.output).to_dict()["run"]
        assert (run["alive"], run["age_s"]) == (alive, pytest.approx(age, abs=4))


def test_the_next_run_goes_on_counting(job: SmallJob) -> None:
    store = open_store(job.output)
    assert earlier(store) == (JobUsage(), [])
    following = progress(job, JobUsage(device_s=100, use=Usage(commits=1, by_commit={"0.1": 1})))
    following.observe(FLEET)
    following.end_fleet()
    with Heartbeat(store, following, nobody, print).beating():
        pass
    spent, history = earlier(store)
    assert spent == JobUsage(150, 0.0, 1, 0, 0, 0, Usage(commits=4, by_commit={"0.1": 1}), generated_tokens=40)
    assert history == following.history
    assert history[-1].rows == 3


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1}', b'{"version": 1, "spent": 3}']
)
def test_a_record_that_says_nothing_is_no_obstacle(job: SmallJob, data: bytes) -> None:
    store = open_store(job.output)
    store.write(RECORD, data)
    assert earlier(store) == (JobUsage(), [])


def test_who_was_taken_over_writes_nothing(job: SmallJob) -> None:
    def lost() -> None:
        raise LeaseError("another run has it")

    store = open_store(job.output)
    with Heartbeat(store, progress(job), lost, print).beating():
        pass
    assert last_record(store) is None


def test_a_store_that_is_away_holds_no_run_up(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = open_store(job.output)
    tries: list[str] = []

    def refuse(name: str, data: bytes) -> None:
        tries.append(name)
        raise StorageError("503", passing=True)

    monkeypatch.setattr(store, "write", refuse)
    with Heartbeat(store, progress(job), nobody, print).beating():
        pass
    assert tries == [RECORD] * 2, "at the beginning and at the end"


def test_a_record_that_cannot_be_made_is_said_and_holds_no_run_up(job: SmallJob) -> None:
    said = threading.Event()
    lines: list[str] = []
    broken = [True]

    def may_write() -> None:
        if broken:
            raise KeyError("a defect")

    def say(line: str) -> None:
        lines.append(line)
        broken.clear()
        said.set()

    with Heartbeat(open_store(job.output), progress(job), may_write, say, OFTEN).beating():
        assert said.wait(30)
    assert lines == ["progress.json can no longer be written: KeyError: 'a defect'; the job continues"]


def test_the_record_is_what_status_documents(job: SmallJob) -> None:
    job.ask(6)
    job.begin()
    with Heartbeat(open_store(job.output), progress(job), nobody, print).beating():
        pass
    found: dict[str, Any] = status(job.output).to_dict()
    assert set(found) == {
        "job", "output", "complete", "planned", "done", "answered", "failed", "shards", "shards_done", "run",
        "state", "at", "why", "exit_code", "work", "by_code",
    }  # fmt: skip
    assert set(found["run"]) == {
        "alive", "age_s", "at", "host", "pid", "started", "planned", "done", "failed", "truncated", "rows_per_s",
        "tokens_per_s", "starting", "replicas", "eta", "cost", "currency", "spent", "end",
    }  # fmt: skip
