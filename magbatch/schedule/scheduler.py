"""Many schedules looked after by one process, each due tick in a process of its own.

A job that crashes ends no other and not the scheduler; a scheduler that is killed ends no job. It keeps nothing
that it could lose: what is due is read from the outputs, so that any number of schedulers may look after the same
specs, and one of them runs each tick.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from magbatch import guard
from magbatch.errors import InputError, JobError, LateSpecError, SpecError, StorageError
from magbatch.schedule import look as looks
from magbatch.schedule.history import BEGUN, History
from magbatch.schedule.listing import listed, one_line, row
from magbatch.schedule.look import Look, wait_for
from magbatch.schedule.specs import read
from magbatch.schedule.ticks import due, upcoming
from magbatch.spec import JobSpec, ScheduleSpec

PASS_S = 1.0  # between two looks at the clock, the folder and the children
LOOK = timedelta(seconds=60)  # between two looks at an output where nothing is due by the clock
FIRST_WAIT = timedelta(minutes=1)  # after a run that failed, or that another scheduler has; then twice as long
LONGEST_WAIT = timedelta(hours=1)
MISTAKE = 4  # failures that a permanent mistake counts as: nobody mends one within minutes, and who does is seen
MAX_WHY_BYTES = 2000
RUNS_KEPT = 1000  # of a scheduler that goes on for years
ENDS = {1: "ended early", 2: "cannot go on", 3: "was interrupted", 4: "met a defect in magbatch"}  # by exit code
END_S = 60.0  # replicas commit what is finished within 25 s of a SIGTERM

Begin = Callable[[str, datetime], "subprocess.Popen[bytes]"]


@dataclass(slots=True)
class ScheduledJob:
    """One spec with a schedule.

    Attributes:
        path: Its file.
        spec: What the file says.
        stamp: When and how large the file was as it was read.
        wake: When to look at its output next.
        child: The run that is going, and its tick.
        failures: Runs that failed in a row.
        look: The look at its output that is under way: at most one.
        ended: The run that has ended, while the look is whether it is complete.
    """

    path: str
    spec: JobSpec
    stamp: tuple[int, int]
    wake: datetime
    child: "tuple[subprocess.Popen[bytes], datetime] | None" = None
    failures: int = 0
    look: "Look[Any] | None" = None
    ended: "Ended | None" = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended.

    Attributes:
        tick: Which one.
        code: Exit code of its process; a signal's number is negative.
        why: Why it did not complete, in its own words; empty where it has said nothing.
    """

    tick: datetime
    code: int
    why: str

    def __str__(self) -> str:
        return f"the run of {self.tick.isoformat()}"


def spec_files(folder: str) -> list[str]:
    """The specs of a folder, in the order of their names.

    Raises:
        InputError: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: there is no such folder of specs")
    return sorted(str(path) for path in Path(folder).iterdir() if path.suffix in {".yaml", ".yml"} and path.is_file())


class TickProcess(subprocess.Popen[bytes]):
    """One tick in a process group of its own; what it says goes to the standard error of this one.

    Args:
        path: The spec's file.
        tick: Which one.
    """

    def __init__(self, path: str, tick: datetime) -> None:
        command = [sys.executable, "-m", "magbatch", "schedule", "tick", path, "--at", tick.isoformat()]
        self._why = tempfile.TemporaryFile()  # noqa: SIM115 - `why` closes it
        said = self._why.fileno()
        super().__init__(
            command, stdout=2, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[said],
            env=os.environ | {guard.WHY_FD: str(said), guard.UNATTENDED: "1"},
        )  # fmt: skip

    def why(self) -> str:
        """Why it did not complete, in its own words; empty where it has said nothing. Asked for once, at its end."""
        with self._why as file:
            file.seek(0)
            return " ".join(file.read(MAX_WHY_BYTES).decode(errors="replace").split())


def what_is_due(spec: JobSpec, schedule: ScheduleSpec, now: datetime) -> datetime | None:
    """The tick to run now: the one that the clock says, whose run finishes older ones first; or one with no end."""
    history = History(spec.output.path, quick=True)
    known, first_seen = history.ticks(), history.since(now)
    return due(schedule, known.last or first_seen, now) or next(iter(known.open), None)


class Scheduler:
    """Looks after the specs of a folder.

    Args:
        folder: Every *.yaml in it that has a schedule is looked after; files may come, change and go.
        say: Shows one line to a person.
        begin: Starts the process of a tick.
        clock: The time, in UTC.

    Attributes:
        runs: Job, tick and exit code of the last runs that ended; of a spec or output that cannot be read, its problem.
    """

    def __init__(
        self,
        folder: str,
        say: Callable[[str], None],
        begin: Begin = TickProcess,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._say = say
        self._begin = begin
        self._clock = clock
        self._jobs: dict[str, ScheduledJob] = {}
        self._wrong: dict[str, str] = {}
        self._skipped: dict[str, tuple[tuple[int, int], datetime]] = {}  # stamp of a file, and until when it is skipped
        self._away: str | None = None
        self.runs: deque[dict[str, Any]] = deque(maxlen=RUNS_KEPT)

    def run(self, *, once: bool = False) -> None:
        """Run what is due, until the process is asked to end; with `once`, until what is due now has ended."""
        try:
            spec_files(self._folder)  # what is not there at first is a mistake; later it may be away for a while
            self._look(now=self._clock())
            if not self._jobs:
                what = "nothing to run" if once else "they are looked for, and run once they are there"
                self._say(f"{self._folder}: no spec here that can be read has a schedule: {what}")
            while not once or self._busy():
                time.sleep(PASS_S)
                self._reap()
                if once:
                    self._take_results(self._clock())
                else:
                    self._look(self._clock())
        finally:
            self._stop()

    def _going(self) -> list[ScheduledJob]:
        return [job for job in self._jobs.values() if job.child is not None]

    def _busy(self) -> bool:
        """Whether a run is going, or a store may still answer."""
        return any(job.child or (job.look and not job.look.late_is_said) for job in self._jobs.values())

    def _look(self, now: datetime) -> None:
        """Look at the outputs of jobs that may be due, and begin what is."""
        self._read_specs(now)
        begun = list[Look[Any]]()
        for job in self._jobs.values():
            schedule = job.spec.schedule
            if job.child is not None or job.look is not None or now < job.wake or schedule is None:
                continue
            job.look = Look(partial(what_is_due, job.spec, schedule, now), job.spec.name)
            begun.append(job.look)
        wait_for(begun, looks.ANSWER_S)
        self._take_results(now)

    def _take_results(self, now: datetime) -> None:
        """Act on what was seen since."""
        for job in self._jobs.values():
            look = job.look
            if look is None:
                continue
            if look.is_late and not look.late_is_said:
                look.late_is_said = True
                self._say_late(job, now)
            if look.is_over:
                job.look = None
                if job.ended is not None:
                    self._judge(job, job.ended, look, now)
                else:
                    self._begin_if_due(job, look, now)

    def _say_late(self, job: ScheduledJob, now: datetime) -> None:
        text = f"{job.spec.name}: output.path {job.spec.output.path}: its store has not answered for {looks.LATE_S:g} s"
        if job.ended is not None:
            text = f"{text}; whether {job.ended} is complete is not known yet{_because(job.ended)}"
        self._say(text)
        self._note(job.path, StorageError(text, passing=True))

    def _begin_if_due(self, job: ScheduledJob, look: "Look[Any]", now: datetime) -> None:
        schedule = job.spec.schedule
        assert schedule is not None, "only jobs with a schedule are looked at"
        try:
            tick: datetime | None = look.result()
        except Exception as error:  # noqa: BLE001 - a job's boundary: none ends the others
            self._wait(job, now, mistake=isinstance(error, JobError) and error.exit_code == 2)
            self._say(f"{job.spec.name}: output.path: {one_line(error)}; again at {job.wake}")
            self._note(job.path, error)
            return
        job.wake = min(filter(None, [upcoming(schedule, now), now + LOOK]))
        if tick is None:
            return
        try:
            job.child = self._begin(job.path, tick), tick
        except OSError as error:  # no process, no memory, no descriptor, no room for temporary files
            self._wait(job, now)
            self._say(f"{job.spec.name}: the run of {tick.isoformat()} cannot begin: {error}; again at {job.wake}")
            return
        self._say(f"{job.spec.name}: the run of {tick.isoformat()} begins")

    def _read_specs(self, now: datetime) -> None:
        try:
            paths = spec_files(self._folder)
        except (InputError, OSError) as error:  # it is mounted anew, or a network hiccup: what is known stays
            if self._away is None:
                self._say(f"{one_line(error)}; what was read of it before is looked after meanwhile")
            self._away = str(error)
            return
        if self._away is not None:
            self._say(f"{self._folder}: is there again")
            self._away = None
        for path in set(self._jobs) - set(paths):
            if self._jobs[path].child is None and self._jobs[path].ended is None:
                del self._jobs[path]
        wanted = dict[str, tuple[int, int]]()
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError:
                continue
            stamp, job = (stat.st_mtime_ns, stat.st_size), self._jobs.get(path)
            if job is not None and (job.stamp == stamp or job.child is not None or job.ended is not None):
                continue
            if job is not None and job.look is not None and not job.look.is_late:  # one look at a time
                continue
            skipped, until = self._skipped.get(path, (None, now))
            if skipped != stamp or now >= until:
                wanted[path] = stamp
        for path, found in read(wanted).items():
            self._take(path, wanted[path], found, now)

    def _take(self, path: str, stamp: tuple[int, int], found: JobSpec | SpecError, now: datetime) -> None:
        """Look after a spec that was read, from now on."""
        self._skipped.pop(path, None)
        if isinstance(found, SpecError):  # a module that it names may be mended without the file
            self._skipped[path] = stamp, now + (LONGEST_WAIT if isinstance(found, LateSpecError) else LOOK)
            if self._wrong.get(path) != str(found):
                self._say(str(found))
                self._note(path, found)
            self._wrong[path] = str(found)
            return
        self._wrong.pop(path, None)
        if found.schedule is None:
            self._skipped[path] = stamp, datetime.max.replace(tzinfo=UTC)
            self._jobs.pop(path, None)
        else:
            self._jobs[path] = ScheduledJob(path, found, stamp, now)

    def _reap(self) -> None:
        """Note which runs have ended, and look whether they are complete: an exit code may be that of a crash."""
        begun = list[Look[Any]]()
        for job in self._going():
            assert job.child is not None
            process, tick = job.child
            code = process.poll()
            if code is None:
                continue
            job.child, job.ended = None, Ended(tick, code, _why(process))
            self.runs.append({"job": job.spec.name, "tick": tick.isoformat(), "exit_code": code})
            job.look = Look(partial(_is_over, job.spec.output.path, tick), job.spec.name)
            begun.append(job.look)
        wait_for(begun, looks.ANSWER_S)
        if begun:
            self._take_results(self._clock())

    def _judge(self, job: ScheduledJob, ended: Ended, look: "Look[Any]", now: datetime) -> None:
        """Say how a run ended, and when the job is looked at again."""
        job.ended = None
        what = f"{job.spec.name}: {ended}"
        try:
            is_over = bool(look.result())
        except Exception as error:  # noqa: BLE001 - a job's boundary: none ends the others
            self._say(f"{job.spec.name}: output.path: {one_line(error)}")
            is_over = False
        if ended.code >= 0 and is_over:  # 1: with more dead letters than the spec allows
            job.failures, job.wake = 0, now
            if ended.why:  # of another, which was begun before
                self._wait(job, now)
            self._say(f"{what} is complete{f'; not so {ended.why}; again at {job.wake}' if ended.why else ''}")
            return
        self._wait(job, now, mistake=ended.code == 2)
        code = ended.code
        how = guard.how_it_ended(-code) if code < 0 else ENDS.get(code, f"ended with exit code {code}")
        self._say(f"{what} {how}{_because(ended)} and is not complete; again at {job.wake}")

    def _note(self, path: str, error: BaseException) -> None:
        code = error.exit_code if isinstance(error, JobError) else 2
        self.runs.append({"spec": path, "problem": one_line(error), "exit_code": code})

    def _wait(self, job: ScheduledJob, now: datetime, *, mistake: bool = False) -> None:
        if mistake:
            job.failures = max(job.failures, MISTAKE)
        wait = now + min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(job.failures, 10))
        following = None if job.spec.schedule is None else upcoming(job.spec.schedule, now)
        job.wake = min(filter(None, [following, wait]))  # a run that goes on failing makes no later one late
        job.failures += 1

    def _stop(self) -> None:
        """Ask the runs that are going to end; what they have committed stays."""
        going = [(job, *job.child) for job in self._going() if job.child is not None]
        for _, process, _ in going:
            process.terminate()
        deadline = time.monotonic() + END_S
        for job, process, tick in going:
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            job.child = None
            self.runs.append({"job": job.spec.name, "tick": tick.isoformat(), "exit_code": code})
            _why(process)
            what = f"{job.spec.name}: the run of {tick.isoformat()}"
            self._say(f"{what} was interrupted, since the scheduler ends; the next start goes on with it")


def _is_over(output: str, tick: datetime) -> bool:
    """Whether the output says that a tick is over."""
    return History(output, quick=True).ticks().states.get(tick, BEGUN) != BEGUN


def _because(ended: Ended) -> str:
    return f" ({ended.why})" if ended.why else ""


def _why(process: "subprocess.Popen[bytes]") -> str:
    return process.why() if isinstance(process, TickProcess) else ""


def listing(folder: str, now: datetime) -> list[dict[str, Any]]:
    """What the schedules of a folder have done, and when they run next; nothing is written.

    Returns:
        Of each spec with a schedule: its job, cron, time zone, last tick with its state and facts, and next tick.
        The state of a run that is not complete is `running` or `interrupted`. Of a file that is wrong: its problem.
    """
    found = read(spec_files(folder))
    begun = {
        path: Look(partial(row, spec, spec.schedule, now), spec.name)
        for path, spec in found.items()
        if isinstance(spec, JobSpec) and spec.schedule is not None
    }
    wait_for(begun.values(), looks.LATE_S)
    rows: list[dict[str, Any]] = []
    for path, spec in found.items():
        if isinstance(spec, SpecError):
            rows.append({"spec": path, "problem": str(spec)})
        elif path in begun:
            rows.append({"spec": path} | listed(path, spec, begun[path]))
    return rows


def worst(runs: Iterable[dict[str, Any]]) -> int:
    """The exit code of a command that saw some runs end: 4 for one that crashed or was killed."""
    return max((code if 0 <= (code := run["exit_code"]) <= 4 else 4 for run in runs), default=0)
