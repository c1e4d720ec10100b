"""No file is in two runs of a schedule, none is left out: on disk and S3, with races and kills."""

import io
import json
import multiprocessing
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from magbatch.errors import (
    ClusterError,
    EngineStartError,
    InputError,
    InterruptedJobError,
    JobError,
    LeaseError,
    ModelError,
    SpecError,
    StorageError,
    TooManyFailedError,
)
from magbatch.jobs.run import RunOutcome
from magbatch.ledger.layout import MANIFEST, PLAN
from magbatch.ledger.ledger import Ledger
from magbatch.plan.plan import Plan
from magbatch.report.report import Report, Run
from magbatch.schedule import tick as tick_module
from magbatch.schedule.history import History
from magbatch.schedule.tick import TickOutcome, chosen, run_tick
from magbatch.spec import JobSpec, parse
from magbatch.storage import open_store
from magbatch.totals import Totals

FIRST = datetime(2026, 11, 24, 5, tzinfo=UTC)
DAY = timedelta(days=1)


class Killed(BaseException):
    """Kill like `kill -9`: nothing happens after it."""


def job(root: str, **sections: Any) -> JobSpec:
    data: dict[str, Any] = {
        "name": "daily",
        "model": {"source": "builtin:tiny", "engine": "fake"},
        "input": {"path": f"{root}/input", "columns": {"prompt": "question"}, "incremental": True},
        "output": {"path": f"{root}/output"},
        "replicas": {"gpus": 0},
        "schedule": {"cron": "0 6 * * *", "timezone": "Europe/Paris"},
    }
    for name, section in sections.items():
        data[name] = data.get(name, {}) | section
    return parse(yaml.safe_dump(data))


def put(root: str, name: str, rows: int = 3, text: str = "What?") -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"question": [f"{text} {row}" for row in range(rows)]}), sink)
    open_store(f"{root}/input").write(name, sink.getvalue())


def outcome(spec: JobSpec, plan: Plan, failed: int = 0) -> RunOutcome:
    """Result of a run; more than 0 failed rows are too many."""
    report = Report(spec.name, spec.output.path, plan.rows, Totals(failed=failed), None, Run())
    return RunOutcome(report, (), already=False, why="too many rows failed" if failed else None)


def complete(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
    """Files that `run` leaves behind, without the answers."""
    ledger = Ledger(spec.output.path)
    if ledger.spec() is None:
        ledger.begin(spec, plan)
    ledger.store.write(MANIFEST, b"{}")
    return outcome(spec, plan)


def killed(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
    raise Killed


def run(spec: JobSpec, at: datetime, answer: Any = complete) -> list[TickOutcome]:
    return run_tick(spec, at, Console(file=io.StringIO()), answer)


def taken(spec: JobSpec) -> dict[str, list[str]]:
    """The files of each run, by its tick."""
    found = {}
    for item in open_store(spec.output.path).list("runs/"):
        if item.name.endswith(PLAN):
            plan = Plan.from_bytes(open_store(spec.output.path).read(item.name))
            found[item.name.split("/")[1]] = sorted(path.rpartition("/")[2] for path, _, _ in plan.files())
    return found


def test_each_run_takes_what_is_new_and_a_changed_file_is_new(root: str) -> None:
    spec = job(root)
    put(root, "a.parquet")
    put(root, "b.parquet")
    (first,) = run(spec, FIRST)
    assert (first.state, first.files, first.output) == ("complete", 2, f"{root}/output/runs/20261124T050000Z")
    put(root, "c.parquet")
    assert [one.files for one in run(spec, FIRST + DAY)] == [1]
    (third,) = run(spec, FIRST + 2 * DAY)
    assert (third.state, third.files, third.outcome) == ("empty", 0, None)
    put(root, "b.parquet", text="How?")  # as many bytes: its tag tells
    assert [one.files for one in run(spec, FIRST + 3 * DAY)] == [1]
    assert taken(spec) == {
        "20261124T050000Z": ["a.parquet", "b.parquet"],
        "20261125T050000Z": ["c.parquet"],
        "20261126T050000Z": [],
        "20261127T050000Z": ["b.parquet"],
    }
    assert list(History(spec.output.path).ticks().states.values()) == ["complete", "complete", "empty", "complete"]
    (again,) = run(spec, FIRST + DAY, killed)
    assert (again.already, again.state, again.files) == (True, "complete", 1)


def test_a_place_without_files_is_an_empty_tick_but_one_that_is_not_there_is_wrong(tmp_path: Path) -> None:
    spec = job(str(tmp_path))
    with pytest.raises(InputError, match="there is no such file or directory"):
        run(spec, FIRST)
    (tmp_path / "input").mkdir()
    assert [one.state for one in run(spec, FIRST)] == ["empty"]


def test_a_bad_file_is_taken_once_even_where_it_is_the_only_new_one(tmp_path: Path) -> None:
    root = str(tmp_path)
    spec = job(root, input={"on_bad_file": "dead_letter"})
    put(root, "a.parquet")
    run(spec, FIRST)
    open_store(f"{root}/input").write("bad.parquet", b"no Parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table({"other": [1]}), sink)
    open_store(f"{root}/input").write("other.parquet", sink.getvalue())
    assert [one.files for one in run(spec, FIRST + DAY)] == [2]
    assert [one.state for one in run(spec, FIRST + 2 * DAY)] == ["empty"]


def test_a_run_with_too_many_failed_rows_stays_one(tmp_path: Path) -> None:
    """A platform that tries the command again must not be told that all is well."""
    root = str(tmp_path)
    spec = job(root)
    put(root, "a.parquet")

    def failing(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        complete(spec, console, plan)
        return outcome(spec, plan, failed=3)

    assert [one.too_many_failed for one in run(spec, FIRST, failing)] == [True]
    assert [(one.already, one.too_many_failed) for one in run(spec, FIRST, killed)] == [(True, True)]


def stuck(error: JobError, *ticks: datetime) -> Any:
    """Runs of these ticks end with an error, all others complete."""

    def answer(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        if any(f"{tick:%Y%m%dT%H%M%SZ}" in spec.output.path for tick in ticks):
            raise error
        return complete(spec, console, plan)

    return answer


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TooManyFailedError("4 rows failed, more than allowed"), 1),
        (ModelError("model.source: this version is gone"), 2),
        (StorageError("objects of this run are gone"), 2),
    ],
)
def test_a_run_that_cannot_go_on_stops_no_later_one(tmp_path: Path, error: JobError, code: int) -> None:
    root = str(tmp_path)
    spec, answer = job(root), stuck(error, FIRST, FIRST + DAY)
    put(root, "a.parquet")
    with pytest.raises(type(error)):
        run(spec, FIRST, answer)
    for number in (1, 2, 3):
        put(root, f"{number}.parquet")
        if number == 1:
            with pytest.raises(type(error)):
                run(spec, FIRST + DAY, answer)
            continue
        outcomes = run(spec, FIRST + number * DAY, answer)
        assert [(one.tick, one.state, one.exit_code) for one in outcomes] == [
            (FIRST, "begun", code), (FIRST + DAY, "begun", code), (FIRST + number * DAY, "complete", 0)
        ]  # fmt: skip
        assert outcomes[0].to_dict()["message"] == str(error)
    assert History(spec.output.path).ticks().open == [FIRST, FIRST + DAY]
    assert [(one.state, one.exit_code) for one in run(spec, FIRST + 3 * DAY)] == [("complete", 0)] * 3
    assert [len(names) for names in taken(spec).values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("error", [InterruptedJobError("left"), ClusterError("away"), StorageError("x", passing=True)])
def test_what_stops_a_run_for_a_moment_begins_no_later_one(tmp_path: Path, error: JobError) -> None:
    spec = job(str(tmp_path))
    put(str(tmp_path), "a.parquet")
    for number in (0, 1):
        with pytest.raises(type(error)):
            run(spec, FIRST + number * DAY, stuck(error, FIRST))
    assert list(History(spec.output.path).ticks().states) == [FIRST]


def test_without_incremental_each_run_takes_everything(tmp_path: Path) -> None:
    spec = job(str(tmp_path), input={"incremental": False})
    put(str(tmp_path), "a.parquet")
    assert [one.files for number in range(3) for one in run(spec, FIRST + number * DAY)] == [1, 1, 1]


@pytest.mark.parametrize("moment", ["record", "listing", "plan", "answer", "end"])
def test_what_was_killed_at_any_moment_is_finished_first(
    root: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(root)
    put(root, "a.parquet")
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any) -> Any:
            raise Killed

        places = {"listing": "taken", "plan": "claim", "end": "end"}
        if moment in places:
            patch.setattr(History, places[moment], die)
        elif moment == "record":
            patch.setattr(tick_module, "_finish", die)
        with pytest.raises(Killed):
            run(spec, FIRST, killed if moment == "answer" else complete)
    assert History(spec.output.path).ticks().open == [FIRST]
    put(root, "b.parquet")
    first, second = run(spec, FIRST + DAY)
    assert (first.tick, second.tick) == (FIRST, FIRST + DAY)
    claimed = moment in {"answer", "end"}
    assert taken(spec) == {
        "20261124T050000Z": ["a.parquet"] if claimed else ["a.parquet", "b.parquet"],
        "20261125T050000Z": ["b.parquet"] if claimed else [],
    }
    assert History(spec.output.path).ticks().open == []


def test_a_run_that_stood_still_while_another_took_over_claims_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, spec = str(tmp_path), job(str(tmp_path))
    put(root, "a.parquet")
    history, claim = History(spec.output.path), History.claim

    def slow(self: History, tick: datetime, plan: Plan) -> Plan:
        monkeypatch.setattr(History, "claim", claim)
        put(root, "b.parquet")
        # The other one, for which the lease has expired: it finishes this tick, and then runs its own.
        for name in open_store(spec.output.path).list("_magbatch/lease-"):
            open_store(spec.output.path).delete(name.name)
        assert [one.files for one in run(spec, FIRST + DAY)] == [2, 0]
        return claim(self, tick, plan)

    monkeypatch.setattr(History, "claim", slow)
    run(spec, FIRST)
    assert taken(spec) == {"20261124T050000Z": ["a.parquet", "b.parquet"], "20261125T050000Z": []}
    assert history.ticks().open == []


def test_of_two_schedulers_that_race_for_a_tick_one_runs_it(root: str) -> None:
    spec = job(root)
    put(root, "a.parquet")
    answers, results, barrier = list[str](), list[str](), threading.Barrier(2)

    def answer(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        answers.append(spec.output.path)
        return complete(spec, console, plan)

    def race() -> None:
        barrier.wait()
        try:
            (one,) = run(spec, FIRST, answer)
            results.append("already" if one.already else "won")
        except LeaseError:
            results.append("refused")

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 1
    assert Counter(results)["won"] == 1
    assert taken(spec) == {"20261124T050000Z": ["a.parquet"]}


def _race(root: str, results: Any) -> None:
    for number in range(6):
        put(root, f"{multiprocessing.current_process().name}-{number}.parquet")
        try:
            run(job(root), FIRST + number * DAY)
            results.put("ran")
        except LeaseError:
            results.put("refused")


def test_processes_that_race_over_many_ticks_take_every_file_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path), results), name=f"p{n}") for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    said = Counter(results.get(timeout=5) for _ in range(18))
    assert said["ran"] >= 1
    run(job(str(tmp_path)), FIRST + 9 * DAY)
    counts = Counter(name for names in taken(job(str(tmp_path))).values() for name in names)
    assert counts == {f"p{process}-{number}.parquet": 1 for process in range(3) for number in range(6)}


def test_a_run_that_has_begun_is_finished_as_it_was_begun(tmp_path: Path) -> None:
    root, spec = str(tmp_path), job(str(tmp_path))
    put(root, "a.parquet")

    def begin_and_die(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        ledger = Ledger(spec.output.path)
        ledger.begin(spec, plan)
        ledger.store.write("results/part-00000-x.parquet", b"an answer")
        raise Killed

    with pytest.raises(Killed):
        run(spec, FIRST, begin_and_die)
    seen = list[JobSpec]()

    def answer(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        seen.append(spec)
        return complete(spec, console, plan)

    put(root, "b.parquet")
    run(job(root, sampling={"temperature": 0}), FIRST + DAY, answer)
    assert [one.sampling.temperature for one in seen] == [0.7, 0]


@pytest.mark.parametrize(
    ("mended", "files"),
    [
        ({"sampling": {"temperature": 0}}, [{"a.parquet"}, {"b.parquet"}]),
        (
            {"prompt": {"template": "Now {{ question }}"}, "sampling": {"temperature": 0}},
            [{"a.parquet"}, {"b.parquet"}],
        ),
        ({"input": {"path": "elsewhere"}}, [{"a.parquet"}, {"c.parquet"}]),  # of which the claim has nothing
    ],
    ids=str,
)
def test_a_run_that_has_answered_nothing_takes_the_mended_spec_and_keeps_its_files(
    tmp_path: Path, mended: dict[str, Any], files: list[set[str]]
) -> None:
    root, spec = str(tmp_path), job(str(tmp_path))
    put(root, "a.parquet")

    def refuse(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        Ledger(spec.output.path).begin(spec, plan)
        raise EngineStartError("no such argument")

    with pytest.raises(EngineStartError):
        run(spec, FIRST, refuse)
    put(root, "b.parquet")
    put(f"{root}/elsewhere", "c.parquet")
    if "input" in mended:
        mended = {"input": {"path": f"{root}/elsewhere/input"}}
    asked = list[tuple[float, set[str]]]()

    def answer(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        asked.append((spec.sampling.temperature, {name.rpartition("/")[2] for name, _, _ in plan.files()}))
        return complete(spec, console, plan)

    run(job(root, **mended), FIRST + DAY, answer)
    assert [found for _, found in asked] == files
    if "sampling" in mended:
        assert [temperature for temperature, _ in asked] == [0, 0]


def test_a_spec_that_is_mended_before_anything_was_asked_has_its_columns_again(tmp_path: Path) -> None:
    root, spec = str(tmp_path), job(str(tmp_path))
    put(root, "a.parquet")
    with pytest.raises(Killed):
        run(spec, FIRST, killed)
    put(root, "b.parquet")
    seen = list[Plan]()

    def answer(spec: JobSpec, console: Console, plan: Plan) -> RunOutcome:
        seen.append(plan)
        return complete(spec, console, plan)

    mended = job(root, input={"columns": {}}, prompt={"template": "Now {{ question }}", "system": "none"})
    wider = mended.model_copy(update={"input": mended.input.model_copy(update={"carry": ["question"]})})
    run(wider, FIRST, answer)
    assert [plan.files() for plan in seen] == [History(spec.output.path).plan(FIRST).files()]  # type: ignore[union-attr]


def test_ticks_need_a_schedule_and_are_the_latest_unless_one_says_another(tmp_path: Path) -> None:
    spec = job(str(tmp_path))
    assert chosen(spec, "2026-11-24T06:00+01:00") == FIRST
    assert chosen(spec, None) <= datetime.now(UTC)
    none = job(str(tmp_path), input={"incremental": False}).model_copy(update={"schedule": None})
    with pytest.raises(SpecError, match="schedule: is missing"):
        chosen(none, None)


def test_a_damaged_record_is_of_a_tick_that_was_begun(tmp_path: Path) -> None:
    store = open_store(f"{tmp_path}/output")
    store.write("_magbatch/schedule/20261124T050000Z.json", b"")
    store.write("_magbatch/schedule/notes.json", b"?")
    history = History(f"{tmp_path}/output")
    assert history.ticks().open == [FIRST]
    assert history.seen() is None
    assert history.since(FIRST) == FIRST
    assert history.since(FIRST + DAY) == FIRST
    assert json.loads(store.read("_magbatch/schedule/since.json"))["at"] == FIRST.isoformat()
