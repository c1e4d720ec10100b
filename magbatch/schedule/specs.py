"""Spec files read in processes of their own: a schema may name a user's module, whose import may do anything.

A file that ends its reader, or never lets it end, costs its own schedule and no other's.
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

READ_S = int(IMPORT_S)  # ends before the import of a module has had its time: such a file is not read at each look
READERS = 8
LOOK_S = 0.02


def read(paths: Iterable[str], limit_s: int = READ_S) -> dict[str, JobSpec | SpecError]:
    """The spec of each file, or what is wrong with it, in the order of the files; several are read at a time.

    Args:
        paths: Spec files.
        limit_s: Seconds for each.
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
                except OSError as error:  # no process, no memory, no descriptor
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
    """The process that reads one file.

    Args:
        path: The file.
        limit_s: Seconds after which it is ended; its own timer ends it where this process is gone.
    """

    def __init__(self, path: str, limit_s: int) -> None:
        self._path, self._limit_s = path, limit_s
        self._until = time.monotonic() + limit_s
        self._late = False
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        told = self._answer.fileno()
        command = [sys.executable, "-m", "magbatch.schedule.specs", path, str(told), str(limit_s + 1)]
        try:
            self._process = subprocess.Popen(
                command, stdout=2, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[told]
            )
        except OSError:
            self._answer.close()
            raise

    def is_over(self) -> bool:
        """Whether it has ended, or had its time."""
        self._late = time.monotonic() >= self._until
        return self._process.poll() is not None or self._late

    def result(self) -> JobSpec | SpecError:
        """What it has read."""
        code = self._process.poll()
        self._answer.seek(0)
        data = self._answer.read()
        self.end()
        if code == 0 and data:
            told = json.loads(data)
            return SpecError(told["problem"]) if "problem" in told else parse(told["spec"], origin=self._path)
        if code is None:
            return LateSpecError(
                f"{self._path}: it was not read within {self._limit_s} s; the import of a module that answer.schema "
                "names is to end sooner"
            )
        how = guard.how_it_ended(-code if code < 0 else code << 8)
        return SpecError(f"{self._path}: the process that read it {how}; answer.schema names a module that does so")

    def end(self) -> None:
        """End it, with what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answer.close()


def _main(path: str, told: str, limit_s: str) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(limit_s))
    try:
        answer = {"spec": load(path).to_yaml()}
    except Exception as error:  # noqa: BLE001 - a file's boundary: its schema may be any program
        text = str(error) if isinstance(error, JobError) else f"{path}: {type(error).__name__}: {error}"
        answer = {"problem": text}
    with open(int(told), "wb") as file:
        file.write(json.dumps(answer).encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # threads of a user's module hold up nothing
