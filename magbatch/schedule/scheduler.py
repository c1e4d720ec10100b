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
from pathlib import Path
from typing import Any

from magbatch import guard
from magbatch.errors import InputError, JobError, SpecError
from magbatch.job.status import status
from magbatch.schedule.history import BEGUN, History
from magbatch.schedule.specs import LateSpecError, read
from magbatch.schedule.ticks import due, upcoming
from magbatch.spec import JobSpec, ScheduleSpec

PASS_S = 1.0  # between two looks at the clock, the folder and the children
LOOK = timedelta(seconds=60)  # between two looks at an output where nothing is due by the clock
FIRST_WAIT = timedelta(minutes=1)  # after a run that failed, or that another scheduler has; then twice as long
LONGEST_WAIT = timedelta(hours=1)
MAX_WHY_BYTES = 2000
RUNS_KEPT = 1000  # of a scheduler that goes on for years
ENDS = {1: "ended early", 2: "cannot go on", 3: "was interrupted", 4: "met a defect in magbatch"}  # by exit code
END_S = 60.0  # replicas commit what is finished within 25 s of a SIGTERM

Begin = Callable[[str, datetime], "subprocess.Popen[bytes]"]


@dataclass(slots=True)
class Job:
    """One spec with a schedule.

    Attributes:
        path: Its file.
        spec: What the file says.
        stamp: When and how large the file was as it was read.
        wake: When to look at its output next.
        child: The run that is going, and its tick.
        failures: Runs that failed in a row.
    """

    path: str
    spec: JobSpec
    stamp: tuple[int, int]
    wake: datetime
    child: "tuple[subprocess.Popen[bytes], datetime] | None" = None
    failures: int = 0


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
            env=os.environ | {guard.WHY_FD: str(said)},
        )  # fmt: skip

    def why(self) -> str:
        """Why it did not complete, in its own words; empty where it has said nothing. Asked for once, at its end."""
        with self._why as file:
            file.seek(0)
            return " ".join(file.read(MAX_WHY_BYTES).decode(errors="replace").split())


def what_is_due(spec: JobSpec, schedule: ScheduleSpec, now: datetime) -> datetime | None:
    """The tick to run now: the one that the clock says, whose run finishes older ones first; or one with no end."""
    history = History(spec.output.path)
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
        self._jobs: dict[str, Job] = {}
        self._wrong: dict[str, str] = {}
        self._skipped: dict[str, tuple[tuple[int, int], datetime]] = {}  # stamp of a file, and until when it is skipped
        self._away: str | None = None
        self.runs: deque[dict[str, Any]] = deque(maxlen=RUNS_KEPT)

    def run(self, *, once: bool = False) -> None:
        """Run what is due, until the process is asked to end; with `once`, until what is due now has ended."""
        try:
            spec_files(self._folder)  # what is not there at first is a mistake; later it may be away for a while
            self._look(now=self._clock())
            while not once or self._going():
                time.sleep(PASS_S)
                self._reap()
                if not once:
                    self._look(self._clock())
        finally:
            self._stop()

    def _going(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.child is not None]

    def _look(self, now: datetime) -> None:
        """Begin what is due."""
        self._read_specs(now)
        for job in self._jobs.values():
            schedule = job.spec.schedule
            if job.child is not None or now < job.wake or schedule is None:
                continue
            try:
                tick = what_is_due(job.spec, schedule, now)
            except Exception as error:  # noqa: BLE001 - a job's boundary: none ends the others
                self._say(f"{job.spec.name}: {_one_line(error)}")
                self._wait(job, now)
                self._note(job.path, error)
                continue
            following = upcoming(schedule, now)
            job.wake = min(filter(None, [following, now + LOOK]))
            if tick is not None:
                try:
                    job.child = self._begin(job.path, tick), tick
                except OSError as error:  # no process, no memory, no descriptor
                    self._wait(job, now)
                    self._say(
                        f"{job.spec.name}: the run of {tick.isoformat()} cannot begin: {error}; again at {job.wake}"
                    )
                    continue
                self._say(f"{job.spec.name}: the run of {tick.isoformat()} begins")

    def _read_specs(self, now: datetime) -> None:
        try:
            paths = spec_files(self._folder)
        except (InputError, OSError) as error:  # it is mounted anew, or a network hiccup: what is known stays
            if self._away is None:
                self._say(f"{_one_line(error)}; what was read of it before is looked after meanwhile")
            self._away = str(error)
            return
        if self._away is not None:
            self._say(f"{self._folder}: is there again")
            self._away = None
        for path in set(self._jobs) - set(paths):
            if self._jobs[path].child is None:
                del self._jobs[path]
        wanted = dict[str, tuple[int, int]]()
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError:
                continue
            stamp, job = (stat.st_mtime_ns, stat.st_size), self._jobs.get(path)
            if job is not None and (job.stamp == stamp or job.child is not None):
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
            self._jobs[path] = Job(path, found, stamp, now)

    def _reap(self) -> None:
        """Note which runs have ended."""
        for job in self._going():
            assert job.child is not None
            process, tick = job.child
            code = process.poll()
            if code is None:
                continue
            job.child = None
            self.runs.append({"job": job.spec.name, "tick": tick.isoformat(), "exit_code": code})
            now, what = self._clock(), f"{job.spec.name}: the run of {tick.isoformat()}"
            why = _why(process)
            if code >= 0 and self._is_over(job, tick):  # 1: with more dead letters than the spec allows
                job.failures, job.wake = 0, now
                if why:  # of another, which was begun before
                    self._wait(job, now)
                self._say(f"{what} is complete{f'; not so {why}; again at {job.wake}' if why else ''}")
                continue
            self._wait(job, now)
            how = guard.how_it_ended(-code) if code < 0 else ENDS.get(code, f"ended with exit code {code}")
            self._say(f"{what} {how}{f' ({why})' if why else ''} and is not complete; again at {job.wake}")

    def _is_over(self, job: Job, tick: datetime) -> bool:
        """Whether the output says that a tick is over: an exit code alone may be that of a crash."""
        try:
            return History(job.spec.output.path).ticks().states.get(tick, BEGUN) != BEGUN
        except JobError as error:
            self._say(f"{job.spec.name}: {error}")
            return False

    def _note(self, path: str, error: BaseException) -> None:
        code = error.exit_code if isinstance(error, JobError) else 2
        self.runs.append({"spec": path, "problem": _one_line(error), "exit_code": code})

    def _wait(self, job: Job, now: datetime) -> None:
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
            self._say(f"{job.spec.name}: the run of {tick.isoformat()} was interrupted; the next start goes on with it")


def _why(process: "subprocess.Popen[bytes]") -> str:
    return process.why() if isinstance(process, TickProcess) else ""


def _one_line(error: BaseException) -> str:
    return str(error) if isinstance(error, JobError) else " ".join(f"{type(error).__name__}: {error}".split())


def listing(folder: str, now: datetime) -> list[dict[str, Any]]:
    """What the schedules of a folder have done, and when they run next; nothing is written.

    Returns:
        Of each spec with a schedule: its job, cron, time zone, last tick with its state and facts, and next tick.
        The state of a run that is not complete is `running` or `interrupted`. Of a file that is wrong: its problem.
    """
    rows: list[dict[str, Any]] = []
    for path, spec in read(spec_files(folder)).items():
        try:
            if isinstance(spec, SpecError):
                raise spec
            if spec.schedule is not None:
                rows.append({"spec": path} | _row(spec, spec.schedule, now))
        except JobError as error:
            rows.append({"spec": path, "problem": str(error)})
    return rows


def _row(spec: JobSpec, schedule: ScheduleSpec, now: datetime) -> dict[str, Any]:
    history = History(spec.output.path)
    known, seen = history.ticks(), history.seen()
    first = known.open[0] if known.open else known.last
    last: dict[str, Any] | None = None
    if first is not None:
        state = known.states[first]
        facts = history.facts(first, state) if state != BEGUN else {}
        last = {
            "tick": first.isoformat(),
            "state": _standing(history.run_path(first)) if state == BEGUN else state,
            "output": history.run_path(first),
            **{name: facts[name] for name in ("files", "rows", "failed") if name in facts},
        }
    waiting = due(schedule, max(filter(None, [known.last, seen])), now) if known.last or seen else None
    following = upcoming(schedule, now)
    return {
        "job": spec.name, "output": history.output, "cron": schedule.cron, "timezone": schedule.timezone,
        "runs": len(known.states), "last": last, "due": None if waiting is None else waiting.isoformat(),
        "next": None if following is None else following.isoformat(),
    }  # fmt: skip


def _standing(output: str) -> str:
    try:
        found = status(output)["run"]
    except JobError:  # it has no plan yet
        return "interrupted"
    return "running" if found is not None and found["alive"] else "interrupted"


def worst(runs: Iterable[dict[str, Any]]) -> int:
    """The exit code of a command that saw some runs end: 4 for one that crashed or was killed."""
    return max((code if 0 <= (code := run["exit_code"]) <= 4 else 4 for run in runs), default=0)
