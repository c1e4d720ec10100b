"""The order of a benchmark: cores are split between the engine and everything else."""

import os

import pytest

from magbatch.bench.measure import ARMS, BARE_ARMS, NOT_ASKED, RUN_BATCH, this_machine


@pytest.mark.parametrize(
    ("cores", "gpus", "pin", "engine", "other"),
    [
        ({0, 1, 2, 3}, 0, True, (0, 1), (2, 3)),
        ({4, 6, 7}, 0, True, (4,), (6, 7)),
        ({0, 1}, 1, True, (), ()),
        ({0, 1}, 0, False, (), ()),
        ({0}, 0, True, (), ()),
    ],
)
def test_an_engine_on_cpus_gets_one_half_of_the_cores(
    cores: set[int], gpus: int, pin: bool, engine: tuple[int, ...], other: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    machine = this_machine("builtin:tiny", {}, gpus, pin=pin)
    assert (machine.engine_cores, machine.other_cores) == (engine, other)


def test_the_arm_that_is_left_out_is_named_with_the_option_that_adds_it() -> None:
    assert set(ARMS) - set(BARE_ARMS) == {RUN_BATCH}
    assert ",".join(ARMS) in NOT_ASKED
