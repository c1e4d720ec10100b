"""Files taken by earlier runs are found with few reads, with a sound, damaged or missing index alike."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from magbatch.ledger.layout import PLAN, TAKEN
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.schedule.history import COMPLETE, EMPTY, History
from magbatch.spec import JobSpec, parse
from magbatch.storage import open_store

FIRST = datetime(2026, 11, 24, 5, tzinfo=UTC)
Files = set[tuple[str, int, str]]


@pytest.fixture
def plan(root: str) -> Plan:
    """Plan of one input file, whose name each run's plan changes."""
    spec: JobSpec = parse(
        f"""
        name: daily
        model: {{source: "builtin:tiny", engine: fake}}
        input: {{path: {root}/input, columns: {{prompt: q}}}}
        output: {{path: {root}/output}}
        replicas: {{gpus: 0}}
        """
    )
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"q": ["?"]}), sink)
    open_store(f"{root}/input").write("a.parquet", sink.getvalue().to_pybytes())
    return make_plan(spec)


@pytest.fixture
def history(root: str) -> History:
    return History(f"{root}/output")


def begun(history: History, number: int, plan: Plan, end: str | None = COMPLETE) -> Files:
    """A run of a file of its own, and what it has taken."""
    tick = FIRST + timedelta(days=number)
    (path,) = plan.table.column("path").unique().to_pylist()
    at = plan.table.schema.get_field_index("path")
    named = pa.array([f"{path}-{number}"]).dictionary_encode()
    own = Plan.of(plan.table.set_column(at, plan.table.schema.field(at), named), plan.columns)
    history.begin(tick)
    claimed = history.claim(tick, own)
    if end is not None:
        history.end(tick, end)
    return claimed.files()


def plans_read(history: History, monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The ticks whose plans are read from now on."""
    read: list[datetime] = []
    real = history.plan

    def plan_of(tick: datetime) -> Plan | None:
        read.append(tick)
        return real(tick)

    monkeypatch.setattr(history, "plan", plan_of)
    return read


def test_plans_of_complete_runs_are_read_once(history: History, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    files: Files = set()
    for number in range(6):
        files |= begun(history, number, plan, COMPLETE if number != 2 else None)
    begun(history, 9, plan, EMPTY)
    assert history.taken() == files
    again = History(history.output)
    read = plans_read(again, monkeypatch)
    assert again.taken() == files
    assert read == [FIRST + timedelta(days=2)]  # has no end: it may be deleted, and its files planned again
    files |= begun(history, 10, plan)
    assert again.taken() == files
    assert len(read) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: None,
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"no Parquet at all, but long enough",
        lambda data: data[:40] + bytes(40) + data[80:],
    ],
    ids=["gone", "empty", "cut off", "another", "damaged"],
)
def test_an_index_that_is_gone_or_damaged_is_made_again(
    history: History, plan: Plan, spoil: Callable[[bytes], bytes | None]
) -> None:
    files = begun(history, 0, plan) | begun(history, 1, plan)
    assert history.taken() == files
    store = open_store(history.output)
    data = spoil(store.read(TAKEN))
    store.delete(TAKEN) if data is None else store.write(TAKEN, data)
    assert history.taken() == files
    assert history.taken() == files


def test_an_old_index_is_right_for_what_it_knows(history: History, plan: Plan) -> None:
    """An index as left by a process that was killed before it wrote, or that wrote late."""
    store, rng = open_store(history.output), random.Random(1)
    kept: list[bytes] = []
    files: Files = set()
    for number in range(8):
        files |= begun(history, number, plan)
        assert history.taken() == files
        kept.append(store.read(TAKEN))
    for _ in range(8):
        store.write(TAKEN, rng.choice(kept))
        assert history.taken() == files


def test_a_run_that_is_done_anew_has_the_files_of_its_new_plan(history: History, plan: Plan) -> None:
    files = begun(history, 0, plan)
    begun(history, 1, plan)
    old = history.taken() - files
    store, tick = open_store(history.output), "20261125T050000Z"
    stale = store.read(TAKEN)
    for name in (f"runs/{tick}/{PLAN}", f"_magbatch/schedule/{tick}.complete.json"):
        store.delete(name)
    assert history.taken() == files
    (path,) = plan.table.column("path").unique().to_pylist()
    other = Plan.of(plan.table, plan.columns).files()
    history.claim(FIRST + timedelta(days=1), plan)
    history.end(FIRST + timedelta(days=1), COMPLETE)
    store.write(TAKEN, stale)
    assert history.taken() == files | other
    assert old.isdisjoint(history.taken())
    assert path == next(iter(other))[0]
