"""Writes in a background thread end with the run, and fail alone."""

import threading

import pytest

from magbatch.report.beat import BeatTiming, repeated

OFTEN = BeatTiming(interval_s=0.001)


def ignore(error: Exception) -> None:
    raise AssertionError(error)


def test_a_write_is_repeated_and_the_last_one_comes_after_the_block() -> None:
    calls: list[str] = []
    thrice = threading.Event()

    def write() -> None:
        calls.append("write")
        if len(calls) == 3:
            thrice.set()

    with repeated("test", write, lambda: calls.append("last"), ignore, OFTEN):
        assert thrice.wait(10)
        assert "last" not in calls
    assert calls[-1] == "last"
    assert calls.count("last") == 1


def test_the_first_write_comes_at_once() -> None:
    first = threading.Event()
    with repeated("test", first.set, lambda: None, ignore, BeatTiming(interval_s=3600)):
        assert first.wait(10)


def test_a_write_that_raises_is_told_once_and_the_last_write_still_comes() -> None:
    told: list[Exception] = []
    heard = threading.Event()
    last: list[str] = []

    def write() -> None:
        raise KeyError("a defect")

    def failed(error: Exception) -> None:
        told.append(error)
        heard.set()

    with repeated("test", write, lambda: last.append("last"), failed, OFTEN):
        assert heard.wait(10)
    assert [str(error) for error in told] == ["'a defect'"]
    assert last == ["last"]


def test_a_write_that_hangs_does_not_hold_up_the_end() -> None:
    release = threading.Event()
    last: list[str] = []
    with repeated("test", lambda: release.wait(60) and None, lambda: last.append("last"), ignore,
                  BeatTiming(interval_s=0.001, last_write_s=0.01)):  # fmt: skip
        pass
    release.set()
    assert last == [], "the store hangs: another write would hang too"


def test_what_the_block_raises_goes_on_after_the_last_write() -> None:
    last: list[str] = []
    with pytest.raises(ValueError, match="mine"), repeated("t", lambda: None, lambda: last.append("x"), ignore, OFTEN):
        raise ValueError("mine")
    assert last == ["x"]
