"""A seccomp filter for a sandbox's process: denied system calls fail with EPERM, in every thread.

Denied are calls that reach beyond the process: sockets, other programs and processes, rights and times of files,
priorities, mounts, shared memory. Opening files is left to Landlock (see `confine`).

Source: seccomp(2), bpf in Linux's Documentation/userspace-api/seccomp_filter.rst; numbers from the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # BPF: ld abs; jeq, jset, jge; ret
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000  # bit of the x32 ABI, which numbers every call a second time

# Calls added since Linux 5.1 have equal numbers on all machines.
_DENIED_EVERYWHERE = (
    *(424, 425, 434, 438),  # pidfd_send_signal, io_uring_setup, pidfd_open, pidfd_getfd
    *(428, 429, 430, 432, 442),  # open_tree, move_mount, fsopen, fsmount, mount_setattr
    *(452, 463, 466),  # fchmodat2, setxattrat, removexattrat
)
_CLONE3 = 435


@dataclass(frozen=True, slots=True)
class Machine:
    """System call numbers of one machine type.

    Attributes:
        audit: Number of the machine type in the kernel (AUDIT_ARCH_…).
        seccomp: Number of seccomp(2).
        clone: Number of clone(2); allowed for threads.
        prlimit: Number of prlimit64(2); allowed for the process itself.
        only_here: Numbers of denied calls that this machine type has for itself.
    """

    audit: int
    seccomp: int
    clone: int
    prlimit: int
    only_here: tuple[int, ...]

    @property
    def denied(self) -> tuple[int, ...]:
        """Numbers of all denied calls."""
        return *self.only_here, *_DENIED_EVERYWHERE


MACHINES = {
    "x86_64": Machine(
        0xC000003E, 317, 56, 302,
        (
            *(41, 42, 43, 49, 50, 53, 288, 46, 307),  # socket … accept4, sendmsg, sendmmsg
            *(57, 58, 59, 322),  # fork, vfork, execve, execveat
            *(62, 101, 310, 311),  # kill, ptrace, process_vm_readv, process_vm_writev
            *(90, 91, 268, 92, 93, 94, 260),  # chmod … fchownat
            *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime … utimensat, setxattr … fremovexattr
            *(141, 142, 144, 203, 251, 314),  # setpriority, sched_set…, ioprio_set
            *(165, 166, 155, 161, 272, 308, 169, 170, 171),  # mounts, chroot, unshare, setns, reboot, names
            *(321, 298, 248, 249, 250, 323, 319),  # bpf, perf_event_open, keys, userfaultfd, memfd_create
            *(29, 30, 31, 64, 65, 66, 68, 69, 71, 240),  # shared memory, semaphores and queues of System V and POSIX
        ),
    ),
    "aarch64": Machine(
        0xC00000B7, 277, 220, 261,
        (
            *(198, 203, 202, 200, 201, 199, 242, 211, 269),
            *(221, 281),
            *(129, 117, 270, 271),
            *(52, 53, 54, 55),
            *(88, 5, 6, 7, 14, 15, 16),
            *(140, 118, 119, 122, 30, 274),
            *(40, 39, 41, 51, 97, 268, 142, 161, 162),
            *(280, 241, 217, 218, 219, 282, 279),
            *(194, 195, 196, 190, 191, 193, 186, 187, 189, 180),
        ),
    ),
}  # fmt: skip


def deny_calls(libc: ctypes.CDLL) -> bool:
    """Install the filter.

    Args:
        libc: The C library of a process with `no_new_privs` set.

    Returns:
        Whether the filter is installed. False: the kernel or the machine type does not support it; nothing is denied.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = program(machine)
    lines = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HxxxxxxQ", len(code) // 8, ctypes.addressof(lines))
    return bool(libc.syscall(machine.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, filter_) == 0)


def program(machine: Machine) -> bytes:
    """The BPF program: a test that does not hold jumps over its consequence.

    Example:
        `_if(_EQUAL, 41, [_line(_RETURN, deny)])` is two lines. `jeq 41, 0, 1` jumps over 0 lines if the loaded number
        is 41, else over 1 line. The line that it may jump over is `ret deny`.
    """
    deny, missing = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    lines = [
        _line(_LOAD, _MACHINE),
        *_unless(_EQUAL, machine.audit, [_line(_RETURN, deny)]),
        _line(_LOAD, _NUMBER),
        *_if(_AT_LEAST, _X32, [_line(_RETURN, deny)]),
        # A filter cannot see the flags of clone3; on ENOSYS the C library calls clone.
        *_if(_EQUAL, _CLONE3, [_line(_RETURN, missing)]),
    ]
    for number in machine.denied:
        lines += _if(_EQUAL, number, [_line(_RETURN, deny)])
    of_threads = [
        _line(_LOAD, _FIRST_ARGUMENT),
        *_if(_ANY_BIT, _CLONE_THREAD, [_line(_RETURN, _ALLOW)]),
        _line(_RETURN, deny),
    ]
    of_itself = [_line(_LOAD, _FIRST_ARGUMENT), *_if(_EQUAL, 0, [_line(_RETURN, _ALLOW)]), _line(_RETURN, deny)]
    lines += [*_if(_EQUAL, machine.clone, of_threads), *_if(_EQUAL, machine.prlimit, of_itself)]
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _if(test: int, value: int, then: list[bytes]) -> list[bytes]:
    return [_line(test, value, 0, len(then)), *then]


def _unless(test: int, value: int, then: list[bytes]) -> list[bytes]:
    return [_line(test, value, len(then), 0), *then]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
