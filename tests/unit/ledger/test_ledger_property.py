"""Any sequence of commits, crashes, duplicate attempts, retries and merges, against a model in memory."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.book import Book, Hand, ask_again, carry_out, outcome
from support.small_job import SmallJob

from magbatch.errors import StorageError
from magbatch.jobs.choice import Choice
from magbatch.jobs.compact import merge_objects
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.tidy import tidy
from magbatch.pipeline.write import ObjectWriter
from magbatch.storage.disk import LocalStore

ROWS, SHARD_ROWS = 8, 3
KINDS = "aft"  # answered, failed, truncated
NEVER = 10_000
CHOICES = [Choice(), Choice(truncated=True), Choice(codes=("missing_value",))]


class WatchedStore(LocalStore):
    """A disk that is looked at after each change, and on which a process may die.

    Args:
        root: The output.
        look: Function that is called after each change.
        at: The change at which everything ends, counted from 0.
        moment: `before` that change or `after` it.
    """

    def __init__(self, root: str, look: Callable[[], None], at: int, moment: str) -> None:
        super().__init__(root)
        self._look, self._at, self._moment = look, at, moment
        self._changes = 0

    def _change(self, change: Callable[[], None]) -> None:
        number, self._changes = self._changes, self._changes + 1
        if number < self._at or (number == self._at and self._moment == "after"):
            change()
            self._look()
        if number >= self._at:
            raise StorageError("the process died")

    def write(self, name: str, data: bytes) -> None:
        self._change(lambda: super(WatchedStore, self).write(name, data))

    def create(self, name: str, data: bytes) -> bool:
        made: list[bool] = []
        self._change(lambda: made.append(super(WatchedStore, self).create(name, data)))
        return made[0]

    def move(self, name: str, target: str) -> None:
        self._change(lambda: super(WatchedStore, self).move(name, target))

    def delete(self, name: str) -> None:
        self._change(lambda: super(WatchedStore, self).delete(name))


class Life:
    """An output from its first commit to its last retry.

    The model has three outcomes of the rows. `held` follows the rule that keeps one of two, before there is a manifest.
    `complete` is the outcome that a reader of the manifest must find from then on. `next` is the outcome that a reader
    may find instead while a retry ends. Each text names its attempt, and sorts as attempts do.

    Args:
        folder: Folder of the job.
        samples: Records of an answered row.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self.book = Book(SmallJob(folder), rows=ROWS, shard_rows=SHARD_ROWS, samples=samples)
        self.place = {row_id: number for number, row_id in enumerate(self.book.plan.row_ids())}
        self.held: dict[str, str] = {}
        self.writers: list[tuple[int, ObjectWriter, set[int]]] = []
        self.complete: dict[str, str] | None = None
        self.next: dict[str, str] | None = None
        self.retry: tuple[Choice, str] | None = None  # one that is not finished: what it asks, what each row gets
        self.number = 0

    # What readers find

    def read(self) -> dict[str, str] | None:
        """Through the manifest, as a careful reader does; a row that is there twice is an error."""
        store = LocalStore(self.book.job.output)
        manifest = Ledger(store.root).manifest()
        return None if manifest is None else outcome(store, [str(entry.name) for entry in manifest.objects])

    def look(self) -> None:
        """A reader of the manifest finds every row once, at every moment: as it was, or as it will be."""
        found = self.read()
        if self.complete is None and found is not None:
            assert found.keys() == self.place.keys()
            self.complete = dict(self.held)
        assert found in (self.complete, self.next or self.complete)

    def dying(self, draw: Random) -> Ledger:
        """The output as a process sees it that may die at any of its changes."""
        ledger = Ledger(self.book.job.output)
        at = draw.choice([NEVER, draw.randrange(5), draw.randrange(20)])
        ledger.store = WatchedStore(self.book.job.output, self.look, at, draw.choice(["before", "after"]))
        return ledger

    def check(self) -> None:
        """Done rows are known from the objects alone, at any time."""
        ledger, known = self.book.ledger, self.held if self.complete is None else self.complete
        done_rows = ledger.look_up(range(len(self.book.ids)))
        for shard, ids in enumerate(self.book.ids):
            assert ledger.done_rows(shard) == done_rows(shard) == known.keys() & set(ids)
        assert ledger.done_counts(self.book.plan).tolist() == [len(known.keys() & set(ids)) for ids in self.book.ids]
        assert self.read() == self.complete

    # What happens

    def commit(self, draw: Random) -> None:
        """A new attempt, or one of before that goes on; after the end of the job, it is a zombie's."""
        shard = draw.randrange(len(self.book.ids))
        attempt = len(self.writers)
        if self.writers and draw.random() < 0.4:
            attempt = draw.randrange(attempt)
            shard = self.writers[attempt][0]
        else:
            self.writers.append((shard, self.book.writer(shard), set()))
        done = self.writers[attempt][2]
        rows = [row for row in range(len(self.book.ids[shard])) if row not in done and draw.random() < 0.6]
        self.write(attempt, rows, draw.choice(KINDS))

    def write(self, attempt: int, rows: list[int], kind: str) -> None:
        """An attempt finishes a row once, whatever others do."""
        shard, writer, done = self.writers[attempt]
        if not rows:
            return
        done.update(rows)
        by = f"{attempt:03d}"
        _write(self.book, shard, rows, kind, by, writer)
        if self.complete is None:
            for row_id in (self.book.ids[shard][row] for row in rows):
                text = _text(kind, by)
                self.held[row_id] = min(self.held.get(row_id, text), text, key=_rank)

    def fill(self, draw: Random) -> None:
        """Open rows get an outcome from a new attempt at each shard, and the job ends."""
        for shard, ids in enumerate(self.book.ids):
            self.writers.append((shard, self.book.writer(shard), set()))
            rows = {row: draw.choice(KINDS) for row, row_id in enumerate(ids) if row_id not in self.held}
            for kind in KINDS:
                self.write(len(self.writers) - 1, [row for row in rows if rows[row] == kind], kind)
        self.end(draw)

    def end(self, draw: Random) -> None:
        """The job is finalised, where it can be; or, complete already, tidied."""
        ledger = self.dying(draw)
        with suppress(StorageError):
            if ledger.manifest() is not None:
                tidy(ledger, lambda: None)
            else:
                missing = carry_out(ledger, self.book.spec, self.book.plan)
                assert set(missing) == self.place.keys() - self.held.keys()

    def ask_again(self, draw: Random) -> None:
        """Each row gets a result; a retry that was interrupted is repeated as it was."""
        if self.complete is None:
            return
        if self.retry is None:
            self.number += 1
            self.retry = (draw.choice(CHOICES), "".join(draw.choices(KINDS, k=ROWS)))
        (choice, results), by = self.retry, f"again {self.number}"
        after = self.next = {
            row_id: _text(result, by) if _chosen(choice, old) and result in ("a", "at"[not choice.truncated]) else old
            for (row_id, old), result in zip(sorted(self.complete.items()), results, strict=True)
        }
        of_row = dict(zip(sorted(self.complete), results, strict=True))

        def answer(hand: Hand) -> None:
            for shard, ids in enumerate(hand.ids):
                writer = hand.writer(shard)
                for kind in KINDS:
                    rows = [row for row, row_id in enumerate(ids) if of_row[row_id] == kind]
                    if rows:
                        _write(hand, shard, rows, kind, by, writer)

        counted = self.retries()
        with suppress(StorageError):
            done = ask_again(self.dying(draw), answer, choice)
            assert done.rows == sum(_chosen(choice, old) for old in self.complete.values())
            assert done.answered == sum(after[row_id] != old for row_id, old in self.complete.items())
            self.retry = None
        if self.retries() > counted:
            self.complete, self.retry = after, None
        self.next = None

    def retries(self) -> int:
        manifest = self.book.ledger.manifest()
        return len(manifest.retries) if manifest is not None else 0

    def merge(self, draw: Random) -> None:
        if self.complete is None:
            return
        ledger, size = self.dying(draw), draw.choice([1, 15_000, 1 << 28])
        with suppress(StorageError):
            tidy(ledger, lambda: None)
            merge_objects(ledger, size, lambda: None)
            assert merge_objects(ledger, size, lambda: None).merged == 0

    def prove(self, draw: Random) -> None:
        """After what every command begins with, a glob, the manifest, the report and the proof agree."""
        if self.complete is None:
            return
        tidy(self.book.ledger, lambda: None)
        assert self.book.outcome() == self.complete
        self.book.check_manifest()


def _write(hand: Hand, shard: int, rows: list[int], kind: str, by: str, writer: ObjectWriter) -> None:
    if kind == "f":
        hand.failed(shard, *rows, by=by, writer=writer)
    else:
        hand.answered(shard, *rows, by=by, writer=writer, truncated=kind == "t")


def _text(kind: str, by: str) -> str:
    return {"a": "", "f": "failed: ", "t": "truncated: "}[kind] + by


def _rank(text: str) -> tuple[bool, str]:
    """The rule: an answer, truncated or not, before a dead letter; then the attempt that began first."""
    return text.startswith("failed"), text.rpartition(" ")[2]


def _chosen(choice: Choice, text: str) -> bool:
    return text.startswith("truncated" if choice.truncated else "failed")


EARLY = ["commit", "commit", "end"]
LATE = ["ask_again", "ask_again", "merge", "end", "commit", "prove"]


def steps(names: list[str], most: int) -> "st.SearchStrategy[list[tuple[str, int]]]":
    """Names of events, each with the seed of its details: details drawn piece by piece would mostly be plain."""
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 2**32)), max_size=most)


LIVES = given(early=steps(EARLY, 6), full=st.integers(0, 2**32), late=steps(LATE, 14), samples=st.integers(1, 2))
QUIET = {"deadline": None, "database": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


@settings(max_examples=6, derandomize=True, **QUIET)
@LIVES
def test_whatever_happens_every_row_is_there_once(
    early: list[tuple[str, int]], full: int, late: list[tuple[str, int]], samples: int
) -> None:
    live(early, full, late, samples)


@pytest.mark.fire
@settings(max_examples=400, **QUIET)
@LIVES
def test_whatever_happens_in_lives_that_nobody_has_seen(
    early: list[tuple[str, int]], full: int, late: list[tuple[str, int]], samples: int
) -> None:
    live(early, full, late, samples)


def live(early: list[tuple[str, int]], full: int, late: list[tuple[str, int]], samples: int) -> None:
    """An output is compared with the model after every step, from its first commit to its last retry."""
    with tempfile.TemporaryDirectory(prefix="magbatch-life-") as folder:
        life = Life(Path(folder), samples)
        for name, seed in [*early, ("fill", full), *late, ("end", 0), ("prove", 0)]:
            getattr(life, name)(Random(seed))
            life.check()
