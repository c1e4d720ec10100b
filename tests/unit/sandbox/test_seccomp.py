"""The filter of system calls: a correct BPF program for each machine type, run here by an interpreter of its own."""

import errno
import struct

import pytest

from magbatch.sandbox import seccomp

ALLOW, DENY, MISSING = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
MACHINES = sorted(seccomp.MACHINES)


def verdict(program: bytes, number: int, audit: int, argument: int = 0) -> int:
    """Value that a filter returns for a system call: the kernel's BPF machine in a few lines."""
    data = struct.pack("=IIQQ", number, audit, 0, argument)
    lines = [struct.unpack_from("=HBBI", program, start) for start in range(0, len(program), 8)]
    loaded, position = 0, 0
    while True:
        code, if_true, if_false, value = lines[position]
        position += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: loaded == value, 0x45: bool(loaded & value), 0x35: loaded >= value}[code]
            position += if_true if holds else if_false


@pytest.mark.parametrize("name", MACHINES)
def test_denied_calls_fail_and_all_others_pass(name: str) -> None:
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine)
    assert {verdict(program, number, machine.audit) for number in machine.denied} == {DENY}
    others = set(range(424)) - {*machine.denied, machine.clone, machine.prlimit}
    assert {verdict(program, number, machine.audit) for number in others} == {ALLOW}


@pytest.mark.parametrize("name", MACHINES)
def test_threads_start_and_processes_do_not(name: str) -> None:
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine)
    thread = 0x00010000
    assert verdict(program, machine.clone, machine.audit, thread) == ALLOW
    assert verdict(program, machine.clone, machine.audit, 0) == DENY
    assert verdict(program, 435, machine.audit) == MISSING, "the C library then calls clone, whose flags are seen"


@pytest.mark.parametrize("name", MACHINES)
def test_limits_are_changed_of_the_process_itself_only(name: str) -> None:
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine)
    assert verdict(program, machine.prlimit, machine.audit, 0) == ALLOW
    assert verdict(program, machine.prlimit, machine.audit, 4711) == DENY


@pytest.mark.parametrize("name", MACHINES)
def test_calls_of_another_machine_type_are_denied(name: str) -> None:
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine)
    assert verdict(program, 0, 0x40000003) == DENY, "32-bit calls have other numbers"
    assert verdict(program, 0x40000000, machine.audit) == DENY, "x32 numbers every call a second time"
