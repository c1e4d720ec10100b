"""Spec files read in processes of their own, because a spec may import a user's module, which may do anything.

A file that crashes its reader, or never lets it end, costs its own schedule only.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from magbatch import guard
from magbatch.errors import JobError, LateSpecError, SpecError
from magbatch.spec import JobSpec, load, parse
from magbatch.spec.user_model import IMPORT_S

# As long as the import of a user's module may take. The reader has to start first, so a module that takes all of its
# time ends in `LateSpecError`, whose file is not read again for an hour.
READ_S = int(IMPORT_S)
READERS = 8  # most files read at once
LOOK_S = 0.02  # time between two looks at the readers


def read(paths: Iterable[str], limit_s: int = READ_S) -> dict[str, JobSpec | SpecError]:
    """Read spec files, `READERS` at a time.

    Args:
        paths: The files.
        limit_s: Time limit for each file (seconds).

    Returns:
        Path to spec, or to the error of its file, in the order of `paths`.
    """
    found: dict[str, JobSpec | SpecError] = {}
    paths = list(paths)
    waiting, going = deque(paths), dict[str, _Reader]()
    try:
        while waiting or going:
            while waiting and len(going) < READERS:
                path = waiting.popleft()
                try:
                    going[path] = _Reader(path, limit_s)
                except OSError as error:  # the machine lacks processes, memory or descriptors
                    found[path] = SpecError(f"{path}: no process can be started to read it: {error}")
            for path in [path for path, reader in going.items() if reader.is_over()]:
                found[path] = going.pop(path).result()
            if going:
                time.sleep(LOOK_S)
    finally:
        for reader in going.values():
            reader.end()
    return {path: found[path] for path in paths}


class _Reader:
    """Process that reads one file.

    Args:
        path: The file.
        limit_s: Time limit (seconds). If this process dies, the reader's own timer ends it.
    """

    def __init__(self, path: str, limit_s: int) -> None:
        self._path, self._limit_s = path, limit_s
        self._until = time.monotonic() + limit_s
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        descriptor = self._answer.fileno()
        command = [sys.executable, "-m", "magbatch.schedule.specs", path, str(descriptor), str(limit_s + 1)]
        try:
            self._process = subprocess.Popen(
                command, stdout=2, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[descriptor]
            )
        except OSError:
            self._answer.close()
            raise

    def is_over(self) -> bool:
        """Whether the process has ended, or its time is over."""
        return self._process.poll() is not None or time.monotonic() >= self._until

    def result(self) -> JobSpec | SpecError:
        """The spec, or the error of its file."""
        code = self._process.poll()
        self._answer.seek(0)
        data = self._answer.read()
        self.end()
        if code == 0 and data:
            answer = json.loads(data)
            return SpecError(answer["problem"]) if "problem" in answer else parse(answer["spec"], origin=self._path)
        if code is None:
            return LateSpecError(
                f"{self._path}: not read within {self._limit_s} s; make the module that answer.schema names faster "
                "to import"
            )
        how = guard.how_it_ended(-code if code < 0 else code << 8)
        return SpecError(f"{self._path}: the process that read it {how}; correct the module that answer.schema names")

    def end(self) -> None:
        """Kill the process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answer.close()


def _main(path: str, descriptor: str, limit_s: str) -> None:
    """Read a file in this process and write the answer as JSON.

    Args:
        path: The file.
        descriptor: File descriptor for the answer.
        limit_s: Seconds after which SIGALRM ends this process.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(limit_s))
    try:
        answer = {"spec": load(path).to_yaml()}
    except Exception as error:  # noqa: BLE001 - a file's boundary: the user's module may raise anything
        text = str(error) if isinstance(error, JobError) else f"{path}: {type(error).__name__}: {error}"
        answer = {"problem": text}
    with open(int(descriptor), "wb") as file:
        file.write(json.dumps(answer).encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # threads of a user's module must not delay the end
