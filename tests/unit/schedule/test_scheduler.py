"""Due schedules begin, each in its own process; a schedule that fails waits, and stops no other schedule."""

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.schedules import BEFORE, NOW, Runs, write

from magbatch.schedule.listing import ListedProblem, ListedSchedule, listing
from magbatch.schedule.results import Problem, worst
from magbatch.schedule.scheduler import Scheduler
from magbatch.schedule.timing import Timing
from magbatch.storage import s3 as s3_storage

QUICK = Timing(pass_s=0.02)


def test_what_is_due_runs_and_what_is_wrong_stops_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, name, cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    write(tmp_path, "late", cron="0 3 * * *", missed="skip").since(BEFORE)
    write(tmp_path, "unseen", cron="0 3 * * *")
    write(tmp_path, "plain")
    (tmp_path / "wrong.yaml").write_text("name: [")
    runs, said = Runs(), list[str]()
    scheduler = Scheduler(str(tmp_path), said.append, runs, lambda: NOW, timing=QUICK)
    scheduler.run(once=True)
    tick = NOW - timedelta(minutes=1)
    assert runs.begun == [("a", tick), ("b", tick)]
    assert [run.exit_code for run in scheduler.results] == [2, 0, 0]
    assert worst(scheduler.results) == 2
    again = Runs()
    Scheduler(str(tmp_path), said.append, again, lambda: NOW, timing=QUICK).run(once=True)
    assert again.begun == []


def test_a_run_that_fails_is_tried_again_after_a_while_and_an_interrupted_one_first(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    runs, times = Runs(code=3), iter([NOW + timedelta(seconds=20 * n) for n in range(60)])

    def clock() -> datetime:
        try:
            return next(times)
        except StopIteration as end:
            raise Over from end

    scheduler = Scheduler(str(tmp_path), lambda _: None, runs, clock, timing=QUICK)
    with pytest.raises(Over):
        scheduler.run()
    assert 2 <= len(runs.begun) <= 5  # in 20 minutes: after 1, 2, 4 and 8
    assert {tick for _, tick in runs.begun} == {NOW - timedelta(minutes=1)}
    (row,) = listing(str(tmp_path), NOW)
    assert isinstance(row, ListedSchedule)
    assert row.last is not None
    assert row.last.state == "interrupted"


class Over(Exception):
    """Ends a scheduler from its clock."""


def looked_after(
    folder: Path, runs: Any, looks: int, at: dict[int, Any], timing: Timing = QUICK
) -> tuple[Scheduler, list[str]]:
    """A scheduler after so many looks, at some of which something happens."""
    said, count = list[str](), 0

    def clock() -> datetime:
        nonlocal count
        count += 1
        at.get(count, lambda: None)()
        if count > looks:
            raise Over
        return NOW + timedelta(seconds=count)

    scheduler = Scheduler(str(folder), said.append, runs, clock, timing)
    with pytest.raises(Over):
        scheduler.run()
    return scheduler, said


def test_a_folder_that_is_away_for_a_while_ends_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    write(folder, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    children = list[Any]()

    def begin(path: str, tick: datetime) -> "subprocess.Popen[bytes]":
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return children[-1]

    away = {3: lambda: folder.rename(tmp_path / "away"), 6: lambda: (tmp_path / "away").rename(folder)}
    alive = {8: lambda: said_alive.append(children[0].poll() is None)}
    said_alive: list[bool] = []
    _, said = looked_after(folder, begin, 9, away | alive)
    assert said_alive == [True]
    assert len(children) == 1
    assert sum("there is no such folder" in line for line in said) == 1
    assert f"{folder}: can be read again" in said


def test_a_process_that_cannot_be_begun_is_tried_again(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)

    def begin(path: str, tick: datetime) -> "subprocess.Popen[bytes]":
        raise BlockingIOError(11, "Resource temporarily unavailable")

    _, said = looked_after(tmp_path, begin, 3, {})
    assert "cannot start: [Errno 11] Resource temporarily unavailable; next attempt at" in said[0]


@pytest.mark.parametrize(("code", "how"), [(1, "ended early"), (-9, "was killed by SIGKILL"), (3, "was interrupted")])
def test_what_died_is_not_complete_whatever_its_exit_code(tmp_path: Path, code: int, how: str) -> None:
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    said = list[str]()

    def begin(path: str, tick: datetime) -> "subprocess.Popen[bytes]":
        script = f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"
        return subprocess.Popen([sys.executable, "-c", script])

    Scheduler(str(tmp_path), said.append, begin, lambda: NOW, timing=QUICK).run(once=True)
    assert f"a: the run of {(NOW - timedelta(minutes=1)).isoformat()} {how}" in said[-1]
    assert "is not complete; next attempt at" in said[-1]


def test_why_a_run_did_not_complete_is_said_in_its_own_words(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    said = list[str]()
    scheduler = Scheduler(str(tmp_path), said.append, clock=lambda: NOW, timing=QUICK)
    scheduler.run(once=True)
    assert [run.exit_code for run in scheduler.results] == [2]
    assert f"cannot continue (input.path {tmp_path}/in: there is no such file or directory" in said[-1]


def test_a_run_that_goes_on_failing_makes_no_later_one_late(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="*/20 * * * *", missed="skip").since(BEFORE)
    runs, times = Runs(code=1), iter([NOW + timedelta(minutes=n) for n in range(400)])

    def clock() -> datetime:
        try:
            return next(times)
        except StopIteration as end:
            raise Over from end

    def begin(path: str, tick: datetime) -> "subprocess.Popen[bytes]":
        process = runs(path, tick)
        process.wait()  # the clock goes on by a minute at each look: a slow machine is not to make ticks late
        return process

    with pytest.raises(Over):
        Scheduler(str(tmp_path), lambda _: None, begin, clock, timing=QUICK).run()
    ticks = sorted({tick for _, tick in runs.begun})
    assert len(ticks) >= 4
    assert {after - before for before, after in itertools.pairwise(ticks)} == {timedelta(minutes=20)}


@pytest.mark.parametrize(
    ("module_text", "why"),
    [
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "the module sudden_schema ended the process that imports it with exit code 0"),
        (
            "import os\nos.kill(os.getpid(), 11)",
            "the module sudden_schema ended the process that imports it by SIGSEGV",
        ),
        ("while True:\n    pass", "not read within 10 s"),
        ("raise KeyboardInterrupt", "the import of sudden_schema fails: KeyboardInterrupt"),
    ],
)
def test_a_spec_that_ends_or_holds_up_its_reader_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module_text: str, why: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    timing = Timing(pass_s=0.02, read_s=10 if "while" in module_text else 60)
    write(tmp_path, "b", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    (tmp_path / "sudden_schema.py").write_text(f"{module_text}\n")
    (tmp_path / "a.yaml").write_text((tmp_path / "b.yaml").read_text() + "answer: {schema: 'sudden_schema:Answer'}\n")
    runs = Runs()
    scheduler, said = looked_after(tmp_path, runs, 6, {}, timing)
    assert [name for name, _ in runs.begun] == ["b"]
    (line,) = [line for line in said if "a.yaml" in line]  # once, however often the folder is looked at
    assert why in line
    assert [run.exit_code for run in scheduler.results if isinstance(run, Problem)] == [2]
    problem, row = listing(str(tmp_path), NOW, timing)
    assert problem == ListedProblem(f"{tmp_path}/a.yaml", line)
    assert isinstance(row, ListedSchedule)
    assert row.job == "b"


def test_a_spec_with_a_model_of_a_users_own_is_looked_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    (tmp_path / "own_schema.py").write_text("import pydantic\nclass Answer(pydantic.BaseModel):\n    total: int\n")
    with (tmp_path / "a.yaml").open("a") as file:
        file.write("answer: {schema: 'own_schema:Answer'}\n")
    runs = Runs()
    Scheduler(str(tmp_path), lambda _: None, runs, lambda: NOW, timing=QUICK).run(once=True)
    assert [name for name, _ in runs.begun] == ["a"]


def test_who_ends_the_scheduler_ends_its_runs(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    children = list[Any]()

    def begin(path: str, tick: datetime) -> "subprocess.Popen[bytes]":
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return children[-1]

    def clock() -> datetime:
        if children:
            raise KeyboardInterrupt
        return NOW

    with pytest.raises(KeyboardInterrupt):
        Scheduler(str(tmp_path), lambda _: None, begin, clock, timing=QUICK).run()
    assert [child.poll() for child in children] == [-15]


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a store that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_store_that_never_answers_costs_its_own_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", hanging)
    s3_storage.quick_s3_client.cache_clear()
    timing = Timing(pass_s=0.02, answer_s=0.2, late_s=0.4)
    for name in ("a", "c"):
        write(tmp_path, name, cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    text = (
        (tmp_path / "a.yaml").read_text().replace("name: a", "name: b").replace(str(tmp_path / "out/a"), "s3://b/out")
    )
    (tmp_path / "b.yaml").write_text(text)
    runs, said = Runs(), list[str]()
    scheduler = Scheduler(str(tmp_path), said.append, runs, lambda: NOW, timing=timing)
    scheduler.run(once=True)  # and ends, though the look does not
    assert [name for name, _ in runs.begun] == ["a", "c"]
    late = "b: output.path s3://b/out: its store has not answered for 0.4 s"
    assert said.count(late) == 1
    assert [run.problem for run in scheduler.results if isinstance(run, Problem)] == [late]
    first, second, third = listing(str(tmp_path), NOW, timing)
    for row in (first, third):
        assert isinstance(row, ListedSchedule)
        assert row.last is not None
        assert row.last.state == "complete"
    assert isinstance(second, ListedProblem)
    assert second.problem == f"{tmp_path}/b.yaml: output.path s3://b/out: its store has not answered for 0.4 s"
    s3_storage.quick_s3_client.cache_clear()


def test_an_output_that_cannot_be_read_costs_its_own_line(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    (tmp_path / "taken").write_text("a file")
    text = (tmp_path / "a.yaml").read_text().replace(str(tmp_path / "out/a"), f"{tmp_path}/taken/out")
    (tmp_path / "b.yaml").write_text(text)
    found = listing(str(tmp_path), NOW)[1]
    assert isinstance(found, ListedProblem)
    assert found.problem.startswith(f"{tmp_path}/b.yaml: output.path {tmp_path}/taken/out: ")
    said = list[str]()
    Scheduler(str(tmp_path), said.append, Runs(), lambda: NOW, timing=QUICK).run(once=True)
    (line,) = [line for line in said if "taken" in line]
    assert line.startswith("a: output.path: ")
    assert f"next attempt at {NOW + timedelta(minutes=16)}" in line  # nobody mends it within a minute


@pytest.mark.parametrize("once", [True, False])
def test_a_folder_without_schedules_is_said(tmp_path: Path, once: bool) -> None:
    write(tmp_path, "plain")
    said, count = list[str](), 0

    def clock() -> datetime:
        nonlocal count
        count += 1
        if count > 2:
            raise Over
        return NOW

    scheduler = Scheduler(str(tmp_path), said.append, Runs(), clock, timing=QUICK)
    with suppress(Over):
        scheduler.run(once=once)
    (line,) = said
    assert line.startswith(f"{tmp_path}: no readable spec here has a schedule: ")
    assert worst(scheduler.results) == 0
