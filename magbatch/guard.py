"""A command that starts Ray always ends with a true exit code, and no process that it started outlives it.

When Ray breaks down, its C++ code ends its process with exit code 1, which would mean "too many rows failed". So such a
command is three processes. The front and the keeper import only the standard library and hold no data:

    front (the process that a shell knows) -> keeper (a session of its own) -> driver -> Ray, replicas, engines

The driver announces its exit code through a pipe. Without an announcement the exit code is 3. The front and the keeper
are subreapers: an orphan of the driver becomes their child and is killed. Either of them can be killed: the keeper ends
everything when the front is gone, and the front does so when the keeper is gone.
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
LEFT = "interrupted; committed rows stay"
# Signal that asks the driver to end. SIGTERM would not work: while Ray starts, its own handler raises at any line.
# Raised within an import, the exception leaves Python's import lock taken, and the driver hangs (seen with Ray 2.60).
STOP = signal.SIGUSR2
FORWARDED = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: STOP, signal.SIGHUP: STOP, STOP: STOP}
PARENT_DIED = signal.SIGUSR1
WATCHED = {*FORWARDED, PARENT_DIED, signal.SIGCHLD}
LOOK_S = 0.5  # interval of polling for facts without a signal: a stopped front, a new announcement
STOP_S = 120.0  # grace period of a driver that was asked to end; its replicas commit finished rows within 30 s
END_S = 10.0  # grace period of a driver whose Ray broke down, and of killed processes
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)

UNATTENDED = "MAGBATCH_UNATTENDED"  # variable that a program sets if it repeats this command after exit code 3
WHY_FD = "MAGBATCH_WHY_FD"  # variable with the file descriptor for one line on why the command did not complete

_libc = ctypes.CDLL(None, use_errno=True)
_front: int | None = None
_channel: int | None = None
_interrupted = False


# In the driver


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt for SIGINT, SIGTERM and `STOP`, and remember the signal."""
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether `interrupt` was called. A library may turn a KeyboardInterrupt into any exception."""
    return _interrupted


def command_pid() -> int:
    """Process id of the command as its user sees it: the front's."""
    return os.getpid() if _front is None else _front


def announce(code: int) -> None:
    """Announce the command's exit code; the driver's end does not change it any more."""
    _tell(f"code {code}")


def explain(why: str) -> None:
    """Announce a breakdown in one line; from now on the driver has `END_S` seconds to end."""
    _tell(f"why {' '.join(why.split())}")


def tell_starter(why: str) -> None:
    """Tell the program that started the command why it did not complete, if it set `WHY_FD`."""
    with suppress(OSError, ValueError, KeyError):
        os.write(int(os.environ[WHY_FD]), f"{' '.join(why.split())}\n".encode())


def end_at_once() -> NoReturn:
    """End the driver from a signal handler.

    The keeper kills the remaining processes and says why. Without a keeper, `finally` blocks clean up.
    """
    if _channel is not None:
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


def leave_interrupted() -> NoReturn:
    """End the command as interrupted by a person or the platform."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    announce(INTERRUPTED)
    _complain("InterruptedJobError", LEFT)
    os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    if _channel is not None:
        os.write(_channel, f"{line}\n".encode())


# In the front and the keeper


@dataclass(slots=True)
class _Said:
    """Announcements that came through the driver's pipe.

    Attributes:
        pipe: Descriptor of the pipe's reading end; None for a child that announces nothing.
        code: Announced exit code; None before it.
        why: Announced breakdown in one line; None while nothing has broken.
    """

    pipe: int | None
    code: int | None = None
    why: str | None = None
    _data: bytes = field(default=b"", repr=False)

    @property
    def is_all(self) -> bool:
        """Whether a driver whose Ray broke down is done. Ray's own shutdown would take seconds more."""
        return self.why is not None and self.code is not None

    def listen(self) -> bool:
        """Read new announcements; returns whether a breakdown was among them."""
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
    """Put the command under guard. The call returns in the driver only."""
    global _front, _channel
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the parent process may have ignored it
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
    os.setsid()  # a signal to the front's process group or terminal does not end the keeper
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
    """Watch a child until it ends, kill all processes that it left behind, and exit with its code.

    Args:
        child: Process id of the child: the keeper's or the driver's.
        watched: Signals that are blocked and waited for.
        said: Announcements of the child; without a pipe the child is the keeper.
        front: Process id of the front; None in the front itself.
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
    """Forward signals until a child ends.

    Returns:
        Wait status of the child, None if the front ended first; and whether the child was asked to end.
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
        elif stopped != _is_stopped(front):  # Ctrl-Z, or SIGSTOP, which cannot be forwarded
            stopped = not stopped
            os.kill(child, signal.SIGSTOP if stopped else signal.SIGCONT)


def _reap(child: int) -> int | None:
    """Reap ended children, including adopted orphans; returns the wait status of `child` if it has ended."""
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
    """Kill every process that is left below this process."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:  # bounded: a process may hang in the kernel
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        import psutil  # imported only in this rare case: it takes longer than everything else here

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def _judge(child: int, status: int, said: _Said, *, interrupted: bool) -> int:
    """Exit code of the command. If the driver announced none, a message says why."""
    if said.code is not None:
        return said.code
    if said.pipe is None and os.WIFEXITED(status):
        return os.WEXITSTATUS(status)  # the keeper has chosen the exit code already
    if (said.why or (LEFT if interrupted else None)) == LEFT:
        name, why = "InterruptedJobError", LEFT
    else:
        who = "driver" if said.pipe is not None else "keeper"
        how = how_it_ended(status) + (", as Ray's code does when Ray breaks down" if os.WIFEXITED(status) else "")
        name, why = "ClusterError", said.why or f"the job's {who} (process {child}) {how}"
    _complain(name, why)
    return INTERRUPTED


def how_it_ended(status: int) -> str:
    """Describe a wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in set(signal.Signals)
        name = signal.Signals(number).name if known else f"signal {number}"
        return f"was killed by {name}" + (
            ", for example by a kernel that is short of memory" if name == "SIGKILL" else ""
        )
    return f"ended by itself with exit code {os.WEXITSTATUS(status)}"


def _complain(name: str, why: str) -> None:
    """Print the error message in the form of `cli`."""
    tell_starter(why)
    if "--json" in sys.argv:
        descriptor, text = 1, json_text({"error": name, "message": why, "exit_code": INTERRUPTED})
    else:
        descriptor, text = 2, f"magbatch: {visible(why)}\nRun the same command again to continue."
    with suppress(OSError):  # the output may have no reader
        if os.isatty(2):
            os.write(2, b"\r\x1b[K\x1b[?25h")  # the live line hides the cursor
        os.write(descriptor, f"{text}\n".encode())
