"""A command that was taken over, and wakes up at the worst moment, changes nothing that other commands made."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.book import Book, Breaking, Hand, carry_out, stored, whole_report
from support.small_job import SmallJob

from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.jobs import complete as complete_module
from magbatch.jobs import run as run_module
from magbatch.jobs import samples as samples_module
from magbatch.jobs.choice import Choice
from magbatch.jobs.compact import compact
from magbatch.jobs.retry import drop, merge, prepare
from magbatch.jobs.run import run
from magbatch.ledger import finalise as finalise_module
from magbatch.ledger import lease as lease_module
from magbatch.ledger.finalise import finalise, renew
from magbatch.ledger.holder import LeaseTiming
from magbatch.ledger.layout import MANIFEST, REPORT
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.verify import verify
from magbatch.report.page import report_files
from magbatch.report.report import Run
from magbatch.report.stored import stored_report
from magbatch.schema import RESULTS
from magbatch.storage import ObjectInfo, Store, open_store
from magbatch.totals import Totals


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """A job whose rows are all committed, and which is not complete yet."""
    book = Book(SmallJob(tmp_path))
    for shard in range(3):
        book.answered(shard, 0, 1, 2, 3)
    return book


class Interrupted:
    """A store whose user stands still once, before one of its calls, while others do what they like.

    Args:
        store: The real one.
        call: Name of the call.
        name: Name of the object.
        meanwhile: Function that does the work of other runs during the request.
    """

    def __init__(self, store: Store, call: str, name: str, meanwhile: Callable[[], None]) -> None:
        self.store, self.root = store, store.root
        self.awaited: tuple[str, str] | None = (call, name)
        self.meanwhile = meanwhile

    def __getattr__(self, call: str) -> Any:
        real = getattr(self.store, call)

        def interrupted(name: str, *rest: Any) -> Any:
            if (call, name) == self.awaited:
                self.awaited = None
                self.meanwhile()
            return real(name, *rest)

        return interrupted


def forget(book: Book) -> None:
    """Let the holder's lease look like one of a machine that is gone."""
    (lease,) = Path(book.job.output, "_magbatch").glob("lease-*.json")
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"place": "elsewhere"}))


# The run's own end, at each of its steps: the last look at the objects, the manifest, and the tidying after it.
@pytest.mark.parametrize(
    ("call", "name"), [("list", "errors/"), ("create", REPORT), ("create", MANIFEST), ("read", MANIFEST)]
)
def test_a_zombie_at_its_end_damages_nothing(
    book: Book, quiet: Console, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    # The zombie's beats stand still, as its process does; the other commands wait for them.
    monkeypatch.setattr(lease_module, "TIMING", LeaseTiming(beat_s=1000.0, expiry_s=0.1, look_s=0.02))
    compacted: list[str] = []

    def others() -> None:
        forget(book)
        run(book.job.spec(), quiet)
        compact(book.job.output, 1 << 28, quiet)
        compacted.extend(book.all_objects())

    lease = Lease(open_store(book.job.output), print)
    with lease.acquire():
        zombie = Ledger(book.job.output)
        zombie.store = Interrupted(zombie.store, call, name, others)

        def report(totals: Totals) -> dict[str, bytes]:
            return whole_report(zombie, book.spec, book.plan, totals)

        with pytest.raises(LeaseError):
            finalise(zombie, book.spec, book.plan, lambda kind, table: None, report, lease.confirm)
    assert sorted(book.all_objects()) == sorted(compacted)
    book.check_manifest()
    assert run(book.job.spec(), quiet).already


@pytest.mark.parametrize("command", ["retry", "compact"])
def test_a_manifest_is_only_renewed_by_who_has_seen_it(book: Book, quiet: Console, command: str) -> None:
    book.finalise()
    spec, plan, manifest = book.ledger.complete_job()
    compact(book.job.output, 1 << 28, quiet)
    seen = book.ledger.manifest()
    change = {"retries": ()} if command == "retry" else {"compacted_to_bytes": 1}
    with pytest.raises(LeaseError, match="another command has changed the manifest"):
        renew(book.ledger, spec, plan, manifest, [], [], **change)
    assert book.ledger.manifest() == seen
    book.check_manifest()


def test_a_lease_whose_number_was_used_meanwhile_is_none(book: Book) -> None:
    """The request was under way for so long that another run took the number, ended, and was followed by a third."""
    root = book.job.output
    last = Lease(open_store(root), print)
    held = []

    def others() -> None:
        with Lease(open_store(root), print).acquire():
            pass
        held.append(last.acquire())
        held[0].__enter__()

    store = Interrupted(open_store(root), "create", "_magbatch/lease-00000001.json", others)
    with pytest.raises(LeaseError, match="another run is working on it"), Lease(store, print).acquire():
        pytest.fail("two hold one output")
    last.confirm()
    held[0].__exit__(None, None, None)


def test_an_outage_is_no_silence(book: Book) -> None:
    """While the store is away nobody can give a sign of life: who waits for one begins to count when it is back."""
    timing = LeaseTiming(beat_s=0.25, expiry_s=0.6, look_s=0.02)
    away: list[bool] = []

    class Away(Interrupted):
        def __getattr__(self, call: str) -> Any:
            if away:
                raise StorageError("503 SlowDown", passing=True)
            return super().__getattr__(call)

    looks = []

    def outage(holder: str) -> None:
        looks.append(holder)
        if len(looks) == 1:
            threading.Timer(0.1, away.append, [True]).start()  # after a look that went well, and before the next beat
            threading.Timer(1.2, away.clear).start()

    store = Away(open_store(book.job.output), "", "", lambda: None)
    with Lease(store, print, timing=timing).acquire():
        forget(book)
        # The holder writes its own place again with its next beat: the watcher is one of another place.
        watcher = Lease(store, outage, patience_s=60, timing=timing)
        watcher._record = replace(watcher._record, place="elsewhere still")
        with pytest.raises(LeaseError, match="another run is working on it"), watcher.acquire():
            pytest.fail("a run that beats whenever it can was taken over")


def test_a_dropped_retry_leaves_nothing_behind(book: Book, quiet: Console) -> None:
    """The retry was killed after its answers were stored next to the job's own."""
    (book.job.store).delete("output/" + next(name for name in book.all_objects()))
    book.failed(0, 0, 1, 2, 3)
    book.finalise()
    before = sorted(book.all_objects())
    found = prepare(book.ledger, Choice(), [])
    found.output().begin(found.spec, found.plan)
    Hand(found.output(), found.plan).answer_all()
    carry_out(found.output(), found.spec, found.plan)
    found.ledger.store = Breaking(found.ledger.store, 1, "before")
    with pytest.raises(StorageError):
        merge(found, lambda: None)
    assert len(book.all_objects()) > len(before), "the retry was killed too early"
    assert drop(book.job.output, quiet)
    assert sorted(book.all_objects()) == before
    book.check_manifest()


class Late:
    """A store one of whose listings of answers is late, and does not show the newest object yet."""

    def __init__(self, store: Store, late: int) -> None:
        self.store, self.root, self.left = store, store.root, late

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        items = list(self.store.list(prefix, after))
        if prefix == f"{RESULTS}/":
            self.left -= 1
            items = items[:-1] if self.left == 0 else items
        return iter(items)

    def __getattr__(self, call: str) -> Any:
        return getattr(self.store, call)


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_listing_that_is_late_at_the_end_is_waited_for(
    book: Book, quiet: Console, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    patient = run_module.patient_ledger

    def late_ledger(*args: Any) -> Ledger:
        ledger = patient(*args)
        ledger.store = Late(ledger.store, late)
        return ledger

    monkeypatch.setattr(run_module, "patient_ledger", late_ledger)
    monkeypatch.setattr(complete_module, "_answer", lambda *_: Run())  # nothing is open
    run(book.job.spec(), quiet)
    book.check_manifest()


@pytest.mark.parametrize(
    "error", [StorageError("s3://b/results/x: 503", passing=True), FileNotFoundError("moved since it was listed")]
)
def test_a_complete_job_is_complete_whatever_becomes_of_its_samples(
    book: Book, quiet: Console, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any) -> list[Any]:
        raise error

    monkeypatch.setattr(samples_module, "_read_samples", broken)
    outcome = run(book.job.spec(), quiet)
    assert (outcome.samples, outcome.report.totals.answered) == ((), 12)


def test_a_complete_job_whose_objects_are_gone_says_so(book: Book, quiet: Console) -> None:
    book.finalise()
    (name, *_) = book.all_objects()
    book.ledger.store.delete(name)
    with pytest.raises(OutputError, match=f"1 object of its manifest is missing; the first is {name}"):
        run(book.job.spec(), quiet)


@pytest.mark.parametrize("stands", ["tidies", "has renewed"])
def test_a_holder_that_stood_still_leaves_the_report_of_the_next_one_alone(
    tmp_path: Path, stands: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie wakes up after the next run staged its report, and before the report is in place."""
    book = Book(SmallJob(tmp_path))
    book.complete()
    assert book.finalise() == []
    ledger, other = book.ledger, Ledger(book.ledger.path)
    manifest, report = stored(ledger), stored_report(ledger)

    def next_one() -> None:
        report.duplicate_ids = 7
        with monkeypatch.context() as patch:
            patch.setattr(finalise_module, "place", lambda *_: None)  # killed before that
            renew(other, book.spec, book.plan, stored(other), [], [], report_files(report))

    if stands == "tidies":
        tidy(ledger, next_one)
    else:
        place = finalise_module.place

        def late(*args: Any) -> None:
            monkeypatch.setattr(finalise_module, "place", place)
            next_one()
            place(*args)

        monkeypatch.setattr(finalise_module, "place", late)
        report.duplicate_ids = 3
        renew(ledger, book.spec, book.plan, manifest, [], [], report_files(report))
    assert stored_report(other).duplicate_ids == 7
    tidy(other, lambda: None)
    assert verify(other).problems == ()
