"""The rights that a sandbox's process gives up before its first request.

On every kernel, memory is bounded and no file can be written. With Landlock and seccomp, the process opens only files
of its own packages and fonts, changes no file, makes no connection, starts no program and reaches no other process.
The names and sizes of files stay visible. A kernel without these features starts the process without them. An exploit
of the kernel is not covered. The process ends with the process that started it.

Source: landlock(7), unshare(2), prctl(2), setrlimit(2).
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

from magbatch.sandbox.seccomp import deny_calls

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # equal on x86-64 and arm64
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # Landlock version -> number of file rights
_TCP, _SCOPES = 0b11, 0b11  # TCP: bind, connect; scopes: abstract sockets, signals
# Code and data that packages load after the start: shared libraries, fonts, the time zone.
_READABLE = (
    *("/usr", "/lib", "/lib64", "/etc/fonts", "/etc/ld.so.cache", "/etc/localtime"),
    *("/dev/null", "/dev/urandom", "/sys/devices/system/cpu"),
)


def confine(memory_mb: int, caller: int) -> None:
    """Give up the rights that requests do not need.

    Args:
        memory_mb: Memory that may be mapped in addition to the memory mapped now, in megabytes.
        caller: Id of the parent process; this process ends when the parent does.
    """
    in_use = _address_space()
    if in_use is not None:
        _lower(resource.RLIMIT_AS, in_use + memory_mb * 2**20)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        _lower(kind, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(_CLONE_NEWNET):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    _landlock(libc)
    deny_calls(libc)
    # Last, because a change of namespaces clears the parent-death signal.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != caller:
        os._exit(1)


def _lower(kind: int, bound: int) -> None:
    _, hard = resource.getrlimit(kind)
    bound = bound if hard < 0 else min(bound, hard)
    resource.setrlimit(kind, (bound, bound))


def _address_space() -> int | None:
    """Bytes that this process has mapped; None if the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def landlock_version() -> int:
    """Landlock version of the kernel; below 1 if the kernel has no Landlock."""
    return int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION))


def _landlock(libc: ctypes.CDLL) -> None:
    """Deny opening files from now on, except to read those of packages; deny TCP connections."""
    version = landlock_version()
    if version < 1:
        return
    rights = (1 << max(count for since, count in _FILE_RIGHTS.items() if since <= version)) - 1
    asked = struct.pack("=QQQ", rights, _TCP, _SCOPES)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = libc.syscall(_CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0)
    if ruleset < 0:
        return
    try:
        for path in _readable():
            _allow(libc, ruleset, path)
        libc.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _readable() -> list[str]:
    ours = str(Path(__file__).parents[1])
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages", "lib-dynload")]
    return [*_READABLE, sys.prefix, sys.base_prefix, ours, *packages]


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # the path does not exist on this system
        return
    try:
        rights = _EXECUTE | _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)
