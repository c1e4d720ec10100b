"""The exit code of a command that starts Ray is true, whatever ends it, and nothing that it started outlives it.

Ray's C++ code ends the process that it runs in with exit code 1, which would say "complete". So such a command is
three processes. Front and keeper import the standard library alone, and hold no data:

    front (the process that a shell knows) -> keeper (a session of its own) -> driver -> Ray, replicas, engines

The driver announces its exit code through a pipe; an end without that is exit code 3. Front and keeper are subreapers:
an orphan of the driver's becomes their child, and is killed. Each of the two goes on where the other is killed: the
keeper ends everything when the front is gone, the front when the keeper is.
"""

import ctypes
import math
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from magbatch.terminal import json_text, visible

INTERRUPTED = 3
LEFT = "interrupted; what was committed stays"
# What asks the driver to end. Not SIGTERM: Ray has handlers of its own for it while it starts, which raise wherever the
# code is; raised within an import, that leaves the lock of all imports taken, and the driver hangs (seen).
STOP = signal.SIGUSR2
FORWARDED = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: STOP, signal.SIGHUP: STOP, STOP: STOP}
PARENT_DIED = signal.SIGUSR1
WATCHED = {*FORWARDED, PARENT_DIED, signal.SIGCHLD}
LOOK_S = 0.5  # between two looks at what no signal tells: whether the front stands still, what the driver has said
STOP_S = 120.0  # for a driver that was asked to end: replicas commit what is finished within 30 s
END_S = 10.0  # for a driver whose Ray broke down; and for processes that were killed
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)

UNATTENDED = "MAGBATCH_UNATTENDED"  # in the environment: a program began this command, and begins it again after code 3
WHY_FD = "MAGBATCH_WHY_FD"  # in the environment: a descriptor that is told in a line why the command did not complete

_libc = ctypes.CDLL(None, use_errno=True)
_front: int | None = None
_channel: int | None = None
_interrupted = False


# In the driver


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT, SIGTERM and `STOP` wherever nothing else does: as Ctrl-C, and noted."""
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether `interrupt` was called: what a library makes of a KeyboardInterrupt may be any exception."""
    return _interrupted


def command_pid() -> int:
    """The process id of the command, as its user knows it."""
    return os.getpid() if _front is None else _front


def announce(code: int) -> None:
    """The command's exit code is known; whatever ends the driver from now on does not change it."""
    _tell(f"code {code}")


def explain(why: str) -> None:
    """What has broken, one line: the driver has `END_S` seconds to end by itself."""
    _tell(f"why {' '.join(why.split())}")


def tell_starter(why: str) -> None:
    """Say why the command did not complete to the program that has started it, where that wants to know."""
    with suppress(OSError, ValueError, KeyError):
        os.write(int(os.environ[WHY_FD]), f"{' '.join(why.split())}\n".encode())


def end_at_once() -> NoReturn:
    """From a signal handler: the keeper ends what is left, and says why; without one, `finally` blocks do."""
    if _channel is not None:
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


def leave_interrupted() -> NoReturn:
    """End the command as one that a person or the platform has interrupted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    announce(INTERRUPTED)
    _complain("InterruptedJobError", LEFT)
    os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    if _channel is not None:
        os.write(_channel, f"{line}\n".encode())


# Around it


@dataclass(slots=True)
class _Said:
    """What a driver has said through its pipe.

    Attributes:
        pipe: Its end to read from; None where nothing is said.
        code: The exit code that was announced.
        why: What has broken.
    """

    pipe: int | None
    code: int | None = None
    why: str | None = None
    _data: bytes = field(default=b"", repr=False)

    @property
    def is_all(self) -> bool:
        """Whether a driver whose Ray is gone is done: what Ray does at the end would take it seconds more."""
        return self.why is not None and self.code is not None

    def listen(self) -> bool:
        """Take what was said since; whether it was what has broken."""
        before = self.why
        if self.pipe is not None:
            with suppress(BlockingIOError):
                while data := os.read(self.pipe, 4096):
                    self._data += data
        *lines, self._data = self._data.split(b"\n")
        for line in lines:
            kind, _, text = line.decode(errors="replace").partition(" ")
            if kind == "code" and self.code is None:
                self.code = int(text)
            elif kind == "why" and self.why is None:
                self.why = text
        return self.why is not before


def enter() -> None:
    """Put the command under guard: returns in the driver; front and keeper never come back from here."""
    global _front, _channel
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who starts the command may have had it ignored
    watched = WATCHED - ({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set())  # nohup
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    front = os.getpid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if keeper := os.fork():
        _keep(keeper, watched, _Said(None))
    _prctl(PR_SET_PDEATHSIG, PARENT_DIED)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.setsid()  # what ends the front's whole group, or its terminal, does not end the keeper
    mouth, ear = _pipe()
    keeper = os.getpid()
    if driver := os.fork():
        os.close(mouth)
        _keep(driver, watched, _Said(ear), front)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(INTERRUPTED)
    os.close(ear)
    _front, _channel = front, mouth
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pipe() -> tuple[int, int]:
    ear, mouth = os.pipe()
    os.set_blocking(ear, False)
    return mouth, ear


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _keep(child: int, watched: set[signal.Signals], said: _Said, front: int | None = None) -> None:
    """Look after a child until it ends, then end all that it has left behind, and exit with its code.

    Args:
        child: Its process id.
        watched: Signals, all of them blocked.
        said: What it says; a child that says nothing is the keeper.
        front: Parent of this process; None in the front itself.
    """
    code = INTERRUPTED
    try:
        status, interrupted = _wait(child, watched, said, front)
        if status is None:
            _end_descendants()  # the front is gone
        else:
            _end_descendants()
            said.listen()
            code = _judge(child, status, said, interrupted=interrupted)
    finally:
        os._exit(code)


def _wait(child: int, watched: set[signal.Signals], said: _Said, front: int | None) -> tuple[int | None, bool]:
    """Hand signals on until a child ends.

    Returns:
        Its wait status, None where the front has ended first; and whether it was asked to end.
    """
    interrupted = stopped = False
    deadline = math.inf
    while True:
        got = signal.sigtimedwait(watched, LOOK_S if front is not None else 3600.0)
        if front is not None and os.getppid() != front:
            return None, interrupted
        status = _reap(child)
        if status is not None:
            return status, interrupted
        if got is not None and got.si_signo in FORWARDED:
            interrupted = True
            deadline = min(deadline, time.monotonic() + STOP_S)
            os.kill(child, FORWARDED[signal.Signals(got.si_signo)])
        if front is None:
            continue
        if said.listen():
            deadline = min(deadline, time.monotonic() + END_S)
        if said.is_all or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        elif stopped != _is_stopped(front):  # Ctrl-Z, or SIGSTOP, which nobody can hand on
            stopped = not stopped
            os.kill(child, signal.SIGSTOP if stopped else signal.SIGCONT)


def _reap(child: int) -> int | None:
    """Take note of children that have ended, orphans among them; the wait status of one, if it has."""
    found = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = ended[1]
    return found


def _is_stopped(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"T"
    return False


def _end_descendants() -> None:
    """Kill what is left of all that was started below this process."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:  # one that hangs in the kernel cannot be waited for
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        import psutil  # in the rare case alone: it takes longer than all else here

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def _judge(child: int, status: int, said: _Said, *, interrupted: bool) -> int:
    """The exit code of the command; where its end was not announced, a person is told why."""
    if said.code is not None:
        return said.code
    if said.pipe is None and os.WIFEXITED(status):
        return os.WEXITSTATUS(status)  # the keeper's, who has judged
    if (said.why or (LEFT if interrupted else None)) == LEFT:
        name, why = "InterruptedJobError", LEFT
    else:
        who = "driver" if said.pipe is not None else "keeper"
        how = how_it_ended(status) + (", as Ray's code does where Ray breaks down" if os.WIFEXITED(status) else "")
        name, why = "ClusterError", said.why or f"the job's {who} (process {child}) {how}"
    _complain(name, why)
    return INTERRUPTED


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in set(signal.Signals)
        name = signal.Signals(number).name if known else f"signal {number}"
        return f"was killed by {name}" + (", as by a kernel that is short of memory" if name == "SIGKILL" else "")
    return f"ended by itself with exit code {os.WEXITSTATUS(status)}"


def _complain(name: str, why: str) -> None:
    """One message, as `cli` words it."""
    tell_starter(why)
    if "--json" in sys.argv:
        descriptor, text = 1, json_text({"error": name, "message": why, "exit_code": INTERRUPTED})
    else:
        descriptor, text = 2, f"magbatch: {visible(why)}\nRun the same command again to go on."
    with suppress(OSError):  # nobody listens
        if os.isatty(2):
            os.write(2, b"\r\x1b[K\x1b[?25h")  # the live line had hidden the cursor
        os.write(descriptor, f"{text}\n".encode())
