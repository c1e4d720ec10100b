"""A scheduler: one process watches many schedules, and runs each due tick in a process of its own.

A crash of a job ends neither another job nor the scheduler. A scheduler that is killed ends no job. It keeps no state
of its own: the outputs say what is due. So any number of schedulers may watch the same specs, and exactly one of
them runs each tick.
"""

import subprocess
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from magbatch import guard
from magbatch.errors import JobError, StorageError
from magbatch.schedule.folder import SpecFolder, spec_files
from magbatch.schedule.history import BEGUN, History
from magbatch.schedule.look import Look, wait_for
from magbatch.schedule.process import TickProcess, reason_of
from magbatch.schedule.results import EndedRun, Problem, Result, one_line
from magbatch.schedule.scheduled import EndedTick, RunningTick, ScheduledJob
from magbatch.schedule.ticks import due, upcoming
from magbatch.schedule.timing import DEFAULT, Timing
from magbatch.spec import JobSpec, ScheduleSpec

LOOK = timedelta(seconds=60)  # time between two looks at an output if no tick is due by the clock
RESULTS_KEPT = 1000  # most results kept, because a scheduler may run for years
ENDS = {1: "ended early", 2: "cannot continue", 3: "was interrupted", 4: "met a defect in magbatch"}  # by exit code

Begin = Callable[[str, datetime], "subprocess.Popen[bytes]"]


def what_is_due(spec: JobSpec, schedule: ScheduleSpec, now: datetime) -> datetime | None:
    """The tick to run now.

    Args:
        spec: The job.
        schedule: Schedule of the job.
        now: Current time (UTC).

    Returns:
        The tick due by the clock (running it finishes older ticks first), else the oldest unfinished tick, else None.

    Raises:
        StorageError: The output does not answer within seconds.
    """
    history = History(spec.output.path, quick=True)
    known, first_seen = history.ticks(), history.since(now)
    return due(schedule, known.last or first_seen, now) or next(iter(known.open), None)


class Scheduler:
    """Scheduler of the specs of a folder.

    Args:
        folder: Path of the folder. Each .yaml and .yml file with a schedule is run when due.
        say: Function that shows one line to a person.
        begin: Function that starts the process of a tick.
        clock: Function that returns the time (UTC).
        timing: Durations of passes, looks and ends.

    Attributes:
        results: The last runs that ended, and problems of specs and outputs.
    """

    def __init__(
        self,
        folder: str,
        say: Callable[[str], None],
        begin: Begin = TickProcess,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timing: Timing = DEFAULT,
    ) -> None:
        self._path, self._say, self._begin, self._clock, self._timing = folder, say, begin, clock, timing
        self._folder = SpecFolder(folder, timing.read_s, say, self._add_problem)
        self.results: deque[Result] = deque(maxlen=RESULTS_KEPT)

    def run(self, *, once: bool = False) -> None:
        """Run due ticks until the process is asked to end.

        Args:
            once: Whether to end when the ticks that are due now have ended.

        Raises:
            InputError: The folder does not exist at the start. Later, it may be missing for a while.
        """
        try:
            spec_files(self._path)
            self._begin_looks(now=self._clock())
            if not self._folder.jobs:
                what = "nothing to run" if once else "new files are read and run as they are added"
                self._say(f"{self._path}: no readable spec here has a schedule: {what}")
            while not once or self._is_busy():
                time.sleep(self._timing.pass_s)
                self._collect_ended()
                if once:
                    self._act_on_looks(self._clock())
                else:
                    self._begin_looks(self._clock())
        finally:
            self._stop()

    def _is_busy(self) -> bool:
        """Whether a tick runs, or a store may still answer."""
        return any(job.running or (job.look and not job.look.late_is_said) for job in self._folder.jobs.values())

    def _look(self, job: ScheduledJob, act: Callable[[], Any]) -> "Look[Any]":
        job.look = Look(act, job.spec.name, self._timing.late_s)
        return job.look

    def _begin_looks(self, now: datetime) -> None:
        """Look at the outputs of jobs that may be due, and start due ticks."""
        self._folder.update(now)
        looks = list[Look[Any]]()
        for job in self._folder.jobs.values():
            if job.running is None and job.look is None and now >= job.wake:
                looks.append(self._look(job, partial(what_is_due, job.spec, job.schedule, now)))
        wait_for(looks, self._timing.answer_s)
        self._act_on_looks(now)

    def _act_on_looks(self, now: datetime) -> None:
        """Act on looks that are over or late."""
        for job in self._folder.jobs.values():
            look = job.look
            if look is None:
                continue
            if look.is_late and not look.late_is_said:
                look.late_is_said = True
                self._say_late(job)
            if look.is_over:
                job.look = None
                if job.ended is not None:
                    self._judge(job, job.ended, look, now)
                else:
                    self._begin_if_due(job, look, now)

    def _say_late(self, job: ScheduledJob) -> None:
        late_s = self._timing.late_s
        text = f"{job.spec.name}: output.path {job.spec.output.path}: its store has not answered for {late_s:g} s"
        if job.ended is not None:
            text = f"{text}; whether {job.ended} is complete is not known yet{job.ended.because}"
        self._say(text)
        self._add_problem(job.path, StorageError(text, passing=True))

    def _begin_if_due(self, job: ScheduledJob, look: "Look[Any]", now: datetime) -> None:
        try:
            tick: datetime | None = look.result()
        except Exception as error:  # noqa: BLE001 - a job's boundary: one output's error stops no other job
            job.wait(now, mistake=isinstance(error, JobError) and error.exit_code == 2)
            self._say(f"{job.spec.name}: output.path: {one_line(error)}; next attempt at {job.wake}")
            self._add_problem(job.path, error)
            return
        job.wake = min(filter(None, [upcoming(job.schedule, now), now + LOOK]))
        if tick is None:
            return
        what = f"{job.spec.name}: the run of {tick.isoformat()}"
        try:
            job.running = RunningTick(self._begin(job.path, tick), tick)
        except OSError as error:  # the machine lacks processes, memory, descriptors or disk space
            job.wait(now)
            self._say(f"{what} cannot start: {error}; next attempt at {job.wake}")
            return
        self._say(f"{what} starts")

    def _collect_ended(self) -> None:
        """Record ticks that ended, and look whether they are complete: an exit code may be that of a crash."""
        looks = list[Look[Any]]()
        for job in self._folder.jobs.values():
            running = job.running
            code = None if running is None else running.process.poll()
            if running is None or code is None:
                continue
            job.running, job.ended = None, EndedTick(running.tick, code, reason_of(running.process))
            self.results.append(EndedRun(job.spec.name, running.tick, code))
            looks.append(self._look(job, partial(_is_over, job.spec.output.path, running.tick)))
        wait_for(looks, self._timing.answer_s)
        if looks:
            self._act_on_looks(self._clock())

    def _judge(self, job: ScheduledJob, ended: EndedTick, look: "Look[Any]", now: datetime) -> None:
        """Say how a tick ended, and set the next look at its job."""
        job.ended = None
        what = f"{job.spec.name}: {ended}"
        try:
            is_over = bool(look.result())
        except Exception as error:  # noqa: BLE001 - a job's boundary: one output's error stops no other job
            self._say(f"{job.spec.name}: output.path: {one_line(error)}")
            is_over = False
        if ended.code >= 0 and is_over:  # also with exit code 1: complete, with too many dead letters
            job.failures, job.wake = 0, now
            if ended.reason:  # an older tick, which the process tried first, is not complete
                job.wait(now)
                self._say(f"{what} is complete, but not {ended.reason}; next attempt at {job.wake}")
            else:
                self._say(f"{what} is complete")
            return
        job.wait(now, mistake=ended.code == 2)
        code = ended.code
        how = guard.how_it_ended(-code) if code < 0 else ENDS.get(code, f"ended with exit code {code}")
        self._say(f"{what} {how}{ended.because} and is not complete; next attempt at {job.wake}")

    def _add_problem(self, path: str, error: BaseException) -> None:
        self.results.append(Problem.of(path, error))

    def _stop(self) -> None:
        """Ask running ticks to end, and wait for them; committed rows are kept."""
        going = [(job, job.running) for job in self._folder.jobs.values() if job.running is not None]
        for _, running in going:
            running.process.terminate()
        deadline = time.monotonic() + self._timing.end_s
        for job, running in going:
            try:
                code = running.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                code = running.process.wait()
            job.running = None
            self.results.append(EndedRun(job.spec.name, running.tick, code))
            reason_of(running.process)  # closes its file
            self._say(
                f"{job.spec.name}: {running} was interrupted because the scheduler ends; its next start resumes it"
            )


def _is_over(output: str, tick: datetime) -> bool:
    """Whether the output records the end of a tick."""
    return History(output, quick=True).ticks().states.get(tick, BEGUN) != BEGUN
