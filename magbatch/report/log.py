"""The log of a run: one text object per run below `_magbatch/logs/` in the output, for people.

It is written during the run. Storage that does not answer can neither delay nor fail the run.
"""

import re
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.text import Text

from magbatch import guard
from magbatch.capture import follow_captures
from magbatch.counts import counted
from magbatch.errors import MagbatchError, StorageError
from magbatch.ledger.layout import LOGS, RETRIES
from magbatch.plan.plan import Plan
from magbatch.replica.board import Slot, Snapshot, State
from magbatch.report.beat import BeatTiming, repeated
from magbatch.report.heartbeat import end_of
from magbatch.report.progress import JobProgress
from magbatch.spec import JobSpec
from magbatch.spec.secrets import without_secrets, without_value
from magbatch.storage import Store, open_store
from magbatch.terminal import uncoloured, visible

MOST_BYTES = 1_000_000  # largest log: any editor opens it at once, and the logs of an output are 20 MB at most
MOST_LOGS = 20  # logs kept in an output, the newest ones
MOST_ENTRY_CHARS = 20_000  # longest entry, whose end is kept: a traceback with its causes fits
MOST_LINE_CHARS = 1_000  # longest line; the search for secrets is quadratic in the length of a word: 20 ms here
HOST_CHARS = 64  # longest host name in a log's name
TIMING = BeatTiming(interval_s=5.0, last_write_s=5.0)
_NAME = re.compile(re.escape(LOGS) + r"\d{4}-\d{2}-\d{2}T\d{6}Z-.+\.log")


def log_of(output: str, began: float) -> "RunLog":
    """Return a new log of a run.

    A retry's log is kept in the output of its job, because the retry's own folder is deleted at its end.

    Args:
        output: Path or URL of the output that the run writes.
        began: Start of the run (Unix time, s).
    """
    return RunLog(open_store(output.partition(f"/{RETRIES}/")[0], quick=True), began)


class RunLog:
    """Collects what happens in a run, and writes it to the output.

    Every method may be called from any thread.

    Args:
        store: Output of the job, as a store that answers quickly or not at all.
        began: Start of the run (Unix time, s).
        host: Name of this machine.
        timing: Durations of the writes.
    """

    def __init__(self, store: Store, began: float, host: str | None = None, timing: BeatTiming = TIMING) -> None:
        self._store, self._timing = store, timing
        self._host = socket.gethostname() if host is None else host
        self._stem = _stem(began, self._host)
        self._name: str | None = None  # known once older logs are listed
        self._lock = threading.Lock()
        self._lines = _BoundedLines(MOST_BYTES)
        self._written = b""
        self._slots: dict[int, tuple[int, State]] = {}  # by slot: number of its joins, and its state
        self._versions: dict[str, str] = {}

    def note(self, text: str) -> None:
        """Add an entry with the current time. Secrets, colours and control sequences are removed."""
        clean = _clean(text)
        if not clean:
            return
        with self._lock:
            self._lines.add(f"{_utc(time.time())} {clean.replace(chr(10), chr(10) + '    ')}\n")

    def note_start(self, spec: JobSpec, plan: Plan, progress: JobProgress) -> None:
        """Note the command, the versions, and the plan in one line."""
        self._versions = dict(progress.versions)
        fleet = counted(spec.replicas.max, "replica")
        self.note(f"start: {_command()} (process {guard.command_pid()} on {self._host})")
        self.note(f"versions: {_listed(self._versions)}")
        self.note(
            f"plan: job {spec.name}: {counted(plan.rows, 'row')} in {counted(plan.num_shards, 'shard')} of "
            f"{counted(plan.num_files(), 'file')}, {progress.before:,} done before; output {spec.output.path}; "
            f"model {spec.model.source}, engine {spec.model.engine}, {fleet} at most"
        )

    def observe(self, fleet: Snapshot) -> None:
        """Note changes since the last call: replicas that joined, serve or are lost, and versions on the nodes."""
        if fleet.versions and not fleet.versions.items() <= self._versions.items():
            self._versions = self._versions | fleet.versions
            self.note(f"versions on the nodes: {_listed(fleet.versions)}")
        for slot in fleet.slots:
            before = self._slots.get(slot.number)
            if before != (slot.joins, slot.state):
                self._slots[slot.number] = (slot.joins, slot.state)
                self.note(_change(slot, joined=before is None or before[0] != slot.joins))

    def end_fleet(self) -> None:
        """Note that all replicas have left, because the fleet has ended."""
        if self._slots:
            self.note(f"fleet has ended: all replicas of its {counted(len(self._slots), 'slot')} have left")
        self._slots.clear()

    @contextmanager
    def writing(self, progress: JobProgress, console: Console) -> Iterator[None]:
        """Write the log while a block runs. Its last entries say how the run ended.

        Lines that the console shows are noted too, and the last text that Ray and other libraries print to a captured
        stdout or stderr.

        Args:
            progress: Progress of the job, for the rows in the last entries.
            console: Console that shows lines to a person.
        """

        def failed(error: Exception) -> None:
            why = f"run log can no longer be written: {type(error).__name__}: {error}; the job continues without it"
            console.print(why, markup=False, highlight=False, soft_wrap=True)

        with (
            repeated("run-log", self._write, self._write_last, failed, self._timing),
            follow_captures(self._note_printed),
            _followed(console, self._note_shown),
        ):
            try:
                yield
            except BaseException as error:
                self._note_end(progress, error)
                raise
            self._note_end(progress, None)

    def _note_shown(self, text: str) -> None:
        """Note a line that a person sees. If this thread handles an exception, note its traceback too.

        A refusal of storage gets no traceback, because its line says everything.
        """
        self.note(text)
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, StorageError):
            self.note(_traceback(error))

    def _note_printed(self, text: str) -> None:
        if text.strip():
            self.note(f"printed by Ray or another library:\n{text.strip()}")

    def _note_end(self, progress: JobProgress, error: BaseException | None) -> None:
        now, end = progress.snapshot(), end_of(error)
        rows = f"{now.done:,} of {now.planned:,} rows done, {max(0, now.done - progress.before):,} of them in this run"
        self.note(f"{rows}, {now.seen.failed:,} failed")
        if error is not None and not isinstance(error, MagbatchError | KeyboardInterrupt | SystemExit):
            self.note(_traceback(error))
        # A complete job may still exit with 1, if too many rows failed: the command decides after this.
        why = f", exit code {end['exit_code']}: {end['error']}: {end['message']}" if error is not None else ""
        self.note(f"end: {end['state']}{why}")

    def _write(self) -> None:
        with suppress(StorageError):  # the next write tries again
            if self._name is None:
                self._name = self._take_name()
            with self._lock:
                data = self._lines.to_bytes()
            if data != self._written:
                self._store.write(self._name, data)
                self._written = data

    def _write_last(self) -> None:
        with suppress(Exception):  # a failed last write must not change how the run ends
            self._write()

    def _take_name(self) -> str:
        """Choose a name that no older log has, and delete the oldest logs."""
        older = [item.name for item in self._store.list(LOGS) if _NAME.fullmatch(item.name)]
        for name in older[: max(0, len(older) - MOST_LOGS + 1)]:
            self._store.delete(name)
        names = (f"{LOGS}{self._stem}{suffix}.log" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
        return next(name for name in names if name not in older)


@contextmanager
def _followed(console: Console, take: Callable[[str], None]) -> Iterator[None]:
    """Pass each text that a console prints to a function, while a block runs."""

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            for item in renderables:
                if isinstance(item, Text):  # the live progress line is not a Text
                    take(item.plain)
            return renderables

    console.push_render_hook(Hook())
    try:
        yield
    finally:
        console.pop_render_hook()


class _BoundedLines:
    """Text of bounded size: if it grows too long, entries in the middle are dropped.

    Args:
        most: Largest size of the text (bytes); half for its start, half for its end.
    """

    def __init__(self, most: int) -> None:
        self._room = (most - 200) // 2  # 200 bytes for the line about dropped entries
        self._head, self._tail = list[bytes](), deque[bytes]()
        self._head_bytes = self._tail_bytes = self._dropped = 0

    def add(self, entry: str) -> None:
        """Add one entry, which ends with a newline."""
        data = entry.encode(errors="replace")
        if not self._tail and self._head_bytes + len(data) <= self._room:
            self._head.append(data)
            self._head_bytes += len(data)
            return
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes > self._room:
            self._tail_bytes -= len(self._tail.popleft())
            self._dropped += 1

    def to_bytes(self) -> bytes:
        """Return the text."""
        gap = [f"... {self._dropped:,} entries are left out here ...\n".encode()] if self._dropped else []
        return b"".join([*self._head, *gap, *self._tail])


def _clean(text: str) -> str:
    """Return the text of an entry: bounded, without secrets, colours and control sequences."""
    cut, text = max(0, len(text) - MOST_ENTRY_CHARS), text[-MOST_ENTRY_CHARS:]
    lines = [f"({cut:,} characters are left out)"] if cut else []
    for line in uncoloured(text).rstrip().split("\n"):
        more = len(line) - MOST_LINE_CHARS
        lines.append(line if more <= 0 else f"{line[:MOST_LINE_CHARS]}… ({more:,} more characters)")
    return visible(without_secrets("\n".join(lines)))


def _stem(began: float, host: str) -> str:
    """Return start time and host as they stand in a log's name: `2026-11-30T120000Z-gpu-box-3`."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", host)[:HOST_CHARS].strip(".-") or "unknown"
    return f"{datetime.fromtimestamp(began, UTC):%Y-%m-%dT%H%M%SZ}-{name}"


def _utc(at: float) -> str:
    """Return a moment (Unix time, s) as `2026-11-30T12:00:03Z`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _change(slot: Slot, *, joined: bool) -> str:
    does = {
        State.STARTING: "starts its engine",
        State.SERVING: "serves",
        State.LOST: "has ended, or is silent",  # a loss that matters has a line of its own, with the reason
    }[slot.state]
    start = f"joined (start {slot.joins} of this slot) and " if joined else ""
    return f"replica {slot.number} {start}{does}"


def _command() -> str:
    """Return the command line of this process, without secrets."""
    name = Path(sys.argv[0]).name
    shown = "magbatch" if name in {"magbatch", "__main__.py"} else name
    return " ".join([shown, *map(without_value, sys.argv[1:])])


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
