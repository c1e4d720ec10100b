"""The log of a run: it says what happened, is bounded, holds no secrets, and never disturbs the run."""

import io
import os
import re
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.capture import STDERR, captured, threads_told
from magbatch.errors import StorageError
from magbatch.ledger.layout import LOGS
from magbatch.replica.board import Slot, Snapshot, State
from magbatch.report import log as log_module
from magbatch.report.beat import BeatTiming
from magbatch.report.log import MOST_BYTES, MOST_LOGS, RunLog, log_of
from magbatch.report.progress import JobProgress
from magbatch.report.terminal import ProgressLine
from magbatch.storage import LocalStore, open_store
from magbatch.totals import Totals

BEGAN = 1_796_040_000.0  # 2026-11-30 12:00 UTC
STAMP = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z ")


class Run:
    """A run of a job of 10 rows, whose console is a text."""

    def __init__(self, job: SmallJob) -> None:
        self.store = open_store(job.output)
        self.shown = io.StringIO()
        self.console = Console(file=self.shown, width=200)
        self.progress = JobProgress(job.spec(), 10, 4)
        self.log = RunLog(self.store, BEGAN, "gpu box/3", BeatTiming(interval_s=0.001))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def lines(self, name: str = f"{LOGS}2026-11-30T120000Z-gpu-box-3.log") -> list[str]:
        """Lines of the log, without their times."""
        return [STAMP.sub("", line) for line in self.store.read(name).decode().splitlines()]


@pytest.fixture
def run(job: SmallJob) -> Run:
    return Run(job)


def test_a_log_tells_a_run_from_its_start_to_its_end(run: Run, job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ask(10)
    job.begin()
    plan = job.plan
    monkeypatch.setattr(sys, "argv", ["/env/bin/magbatch", "run", "job.yaml", "--set", "model.engine_args.api_key=abc"])
    run.log.note_start(job.spec(), plan, run.progress)
    with run.log.writing(run.progress, run.console):
        run.say("metrics: http://here:9480/metrics")
        run.log.observe(Snapshot(slots=[Slot(0, State.STARTING, joins=1)]))
        serving = Snapshot(Totals(answered=5, failed=1), [Slot(0, State.SERVING, joins=1)], False)
        run.log.observe(serving)
        run.log.observe(serving)
        run.log.observe(Snapshot(slots=[Slot(0, State.LOST, joins=1)], versions={"vllm": "9.9"}))
        run.log.observe(Snapshot(slots=[Slot(0, State.STARTING, joins=2)], versions={"vllm": "9.9"}))
        run.log.end_fleet()
        run.progress.observe(serving)
        run.progress.finish(Totals(answered=9, failed=1))
    start, versions, planned, *rest = run.lines()
    assert re.fullmatch(
        r"start: magbatch run job.yaml --set model.engine_args.api_key=\(hidden\) \(process .*\)", start
    )
    assert versions.startswith("versions: magbatch ")
    assert f"10 rows in {plan.num_shards} shard" in planned
    assert "4 done before" in planned
    assert job.output in planned
    assert rest == [
        "metrics: http://here:9480/metrics",
        "replica 0 joined (start 1 of this slot) and starts its engine",
        "replica 0 serves",
        "versions on the nodes: vllm 9.9",
        "replica 0 has ended, or is silent",
        "replica 0 joined (start 2 of this slot) and starts its engine",
        "fleet has ended: all replicas of its 1 slot have left",
        "10 of 10 rows done, 6 of them in this run, 1 failed",
        "end: complete",
    ]
    assert "metrics: http://here:9480/metrics" in run.shown.getvalue(), "the person has seen it too"


def test_an_entry_has_a_time_in_utc(run: Run) -> None:
    with run.log.writing(run.progress, run.console):
        run.log.note("two\nlines")
    first, second, *_ = run.store.read(f"{LOGS}2026-11-30T120000Z-gpu-box-3.log").decode().splitlines()
    assert STAMP.match(first)
    assert second == "    lines"


def test_the_end_names_what_ended_the_run(run: Run) -> None:
    error = StorageError("the store of hf_Abcdefgh1234 is gone", passing=True)
    with pytest.raises(StorageError), run.log.writing(run.progress, run.console):
        raise error
    end = run.lines()[-1]
    assert end == f"end: failed, exit code {error.exit_code}: StorageError: the store of (hidden) is gone"


def test_a_defect_leaves_its_traceback(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.log.writing(run.progress, run.console):
        1 / 0  # noqa: B018
    text = "\n".join(run.lines())
    assert "Traceback (most recent call last):" in text
    assert text.endswith("end: failed, exit code 4: ZeroDivisionError: ZeroDivisionError: division by zero")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_thread_raises_is_there_with_its_traceback(run: Run) -> None:
    def broken() -> None:
        raise KeyError("a defect")

    with run.log.writing(run.progress, run.console), threads_told(run.say):
        thread = threading.Thread(target=broken, name="lease")
        thread.start()
        thread.join()
    lines = run.lines()
    said = lines.index("the thread 'lease' has ended: KeyError: 'a defect'")
    assert lines[said + 1] == "Traceback (most recent call last):"
    assert any("in broken" in line for line in lines[said:])


def test_what_libraries_print_is_there(run: Run) -> None:
    with run.log.writing(run.progress, run.console):
        with captured(STDERR, replay=False):
            os.write(STDERR, b"\x1b[31mraylet: lost a worker\x1b[0m\n")
        with captured(STDERR, replay=False):
            pass
    assert run.lines()[:2] == ["printed by Ray or another library:", "    raylet: lost a worker"]


def test_nothing_in_a_log_steers_a_terminal_or_is_a_secret(run: Run) -> None:
    with run.log.writing(run.progress, run.console):
        run.log.note("\x1b]52;c;aGk=\x07 http://me:secret@host/ \x1b[31mred\x1b[0m")
    assert run.lines()[0] == r"\x1b]52;c;aGk=\x07 http://(hidden)@host/ red"


def test_a_long_log_keeps_its_begin_and_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MOST_BYTES", 10_000)
    log = RunLog(run.store, BEGAN, "host")
    with log.writing(run.progress, run.console):
        for number in range(1_000):
            log.note(f"entry {number}")
    name = f"{LOGS}2026-11-30T120000Z-host.log"
    assert 8_000 < len(run.store.read(name)) <= 10_000
    lines = run.lines(name)
    assert lines[0] == "entry 0"
    assert lines[-1] == "end: complete"
    (gap,) = [line for line in lines if line.startswith("...")]
    left_out = int(re.sub(r"\D", "", gap))
    assert len(lines) - 1 + left_out == 1_002


def test_a_long_entry_keeps_its_end_and_a_long_line_its_begin(run: Run) -> None:
    with run.log.writing(run.progress, run.console):
        run.log.note("first\n" + 10_000 * "a line\n" + "the cause")
        run.log.note(f"begin {10_000 * 'x'}")
    lines = run.lines()
    assert re.fullmatch(r"\([\d,]+ characters are left out\)", lines[0])
    cause = lines.index("    the cause")
    assert lines[cause + 1].startswith("begin xxx")
    assert lines[cause + 1].endswith("x… (9,006 more characters)")
    assert MOST_BYTES == 1_000_000


def test_the_newest_logs_are_kept(run: Run) -> None:
    for hour in range(24):
        run.store.write(f"{LOGS}2026-11-29T{hour:02}0000Z-host.log", b"old")
    run.store.write(f"{LOGS}mine.txt", b"not a log")
    with run.log.writing(run.progress, run.console):
        pass
    names = [item.name.removeprefix(LOGS) for item in run.store.list(LOGS)]
    logs = [name for name in names if name.endswith(".log")]
    assert len(logs) == MOST_LOGS
    assert logs[0] == "2026-11-29T050000Z-host.log"
    assert logs[-1] == "2026-11-30T120000Z-gpu-box-3.log"
    assert "mine.txt" in names


def test_two_runs_of_one_second_have_a_log_each(run: Run, job: SmallJob) -> None:
    for _ in range(2):
        with RunLog(run.store, BEGAN, "host").writing(run.progress, run.console):
            pass
    names = [Path(item.name).name for item in run.store.list(LOGS)]
    assert names == ["2026-11-30T120000Z-host-2.log", "2026-11-30T120000Z-host.log"]


def test_a_store_that_is_away_disturbs_no_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalStore, *args: object) -> None:
        raise StorageError("503", passing=True)

    monkeypatch.setattr(LocalStore, "write", refuse)
    with run.log.writing(run.progress, run.console):
        run.say("on it goes")
    assert run.shown.getvalue() == "on it goes\n"


def test_a_store_that_breaks_is_told_once_and_the_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def broken(self: LocalStore, *args: object) -> None:
        tried.set()
        raise KeyError("a defect")

    monkeypatch.setattr(LocalStore, "write", broken)
    with run.log.writing(run.progress, run.console):
        run.log.note("x")
        assert tried.wait(10)
    assert (
        run.shown.getvalue() == "run log can no longer be written: KeyError: 'a defect'; the job continues without it\n"
    )


def test_the_log_of_a_retry_lies_in_the_output_of_its_job(job: SmallJob) -> None:
    log = log_of(f"{job.output}/_magbatch/retries/0001", BEGAN)
    with log.writing(JobProgress(job.spec(), 1, 0), Console(file=io.StringIO())):
        pass
    assert [item.name for item in open_store(job.output).list(LOGS)] != []


def test_a_terminal_shows_its_line_alone_and_the_log_has_one_a_minute(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magbatch.report.terminal.LOG_INTERVAL_S", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with run.log.writing(run.progress, console), ProgressLine(console, run.progress, run.log.note) as line:
        run.progress.observe(Snapshot(Totals(answered=1), [Slot(0, State.SERVING)], False))
        line.show()
        console.print("a line above it")
    assert [text.split(" · ")[0] for text in run.lines()][:2] == ["rows 5/10 (50.0%)", "a line above it"]
