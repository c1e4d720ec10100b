"""The specs of a folder, read again when their files change."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from magbatch.errors import InputError, LateSpecError, SpecError
from magbatch.schedule.results import one_line
from magbatch.schedule.scheduled import LONGEST_WAIT, ScheduledJob
from magbatch.schedule.specs import read
from magbatch.spec import JobSpec

REREAD = timedelta(seconds=60)  # wait before a wrong spec is read again: a module that it imports may be corrected


def spec_files(folder: str) -> list[str]:
    """Paths of the .yaml and .yml files of a folder, sorted by name.

    Raises:
        InputError: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: there is no such folder of specs")
    return sorted(str(path) for path in Path(folder).iterdir() if path.suffix in {".yaml", ".yml"} and path.is_file())


class SpecFolder:
    """Folder of specs, with the job of each spec that has a schedule.

    Args:
        folder: Path of the folder. Files may be added, changed and removed at any time.
        read_s: Time limit for reading one spec (seconds).
        say: Function that shows one line to a person.
        report: Function that takes a spec's file and its error.

    Attributes:
        jobs: Path of each spec with a schedule, to its job.
    """

    def __init__(
        self, folder: str, read_s: int, say: Callable[[str], None], report: Callable[[str, SpecError], None]
    ) -> None:
        self._folder, self._read_s, self._say, self._report = folder, read_s, say, report
        self._problems: dict[str, str] = {}
        self._skipped: dict[str, tuple[tuple[int, int], datetime]] = {}  # stamp of a file, and until when to skip it
        self._is_away = False
        self.jobs: dict[str, ScheduledJob] = {}

    def update(self, now: datetime) -> None:
        """Update the jobs from the folder.

        If the folder cannot be read (a new mount, a network failure), the known jobs stay. A job whose tick runs is
        neither replaced nor removed.

        Args:
            now: Current time (UTC).
        """
        try:
            paths = spec_files(self._folder)
        except (InputError, OSError) as error:
            if not self._is_away:
                self._say(f"{one_line(error)}; specs that were read before stay in use")
            self._is_away = True
            return
        if self._is_away:
            self._say(f"{self._folder}: can be read again")
            self._is_away = False
        for path in set(self.jobs) - set(paths):
            if not self.jobs[path].is_busy:
                del self.jobs[path]
        changed = self._changed(paths, now)
        for path, found in read(changed, self._read_s).items():
            self._take(path, changed[path], found, now)

    def _changed(self, paths: list[str], now: datetime) -> dict[str, tuple[int, int]]:
        """Files to read now, each with its stamp."""
        changed = dict[str, tuple[int, int]]()
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError:
                continue
            stamp, job = (stat.st_mtime_ns, stat.st_size), self.jobs.get(path)
            if job is not None and (job.stamp == stamp or job.is_busy):
                continue
            if job is not None and job.look is not None and not job.look.is_late:  # one look at a time
                continue
            skipped, until = self._skipped.get(path, (None, now))
            if skipped != stamp or now >= until:
                changed[path] = stamp
        return changed

    def _take(self, path: str, stamp: tuple[int, int], found: JobSpec | SpecError, now: datetime) -> None:
        """Use the spec that was read from a file; an error is reported once."""
        self._skipped.pop(path, None)
        if isinstance(found, SpecError):
            self._skipped[path] = stamp, now + (LONGEST_WAIT if isinstance(found, LateSpecError) else REREAD)
            if self._problems.get(path) != str(found):
                self._say(str(found))
                self._report(path, found)
            self._problems[path] = str(found)
            return
        self._problems.pop(path, None)
        if found.schedule is None:
            self._skipped[path] = stamp, datetime.max.replace(tzinfo=UTC)
            self.jobs.pop(path, None)
        else:
            self.jobs[path] = ScheduledJob(path, found, found.schedule, stamp, now)
