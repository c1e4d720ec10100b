"""Output printed in the background is kept, within bounds, and an error in a thread is reported."""

import os
import subprocess
import sys
import threading

import pytest

from magbatch import capture
from magbatch.capture import STDERR, captured, follow_captures, threads_told


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MAX_BYTES", 10_000)
    monkeypatch.setattr(capture, "TAIL_BYTES", 1_000)


@pytest.mark.usefixtures("small")
def test_a_long_capture_keeps_its_end_and_no_more(capfd: pytest.CaptureFixture[str]) -> None:
    with captured(STDERR, replay=False) as said:
        child = subprocess.Popen(
            [sys.executable, "-c", "import os\ninput()\nos.write(2, b'of a child\\n')"],
            stdin=subprocess.PIPE,
        )  # fmt: skip
        for number in range(3_000):
            os.write(STDERR, f"line {number}\n".encode())
            said.bound()
            assert os.fstat(said.file.fileno()).st_size <= 10_020
        child.communicate(b"\n")
        assert said.text().endswith("line 2998\nline 2999\nof a child\n")
        assert os.fstat(said.file.fileno()).st_blocks * 512 < 20_000, "no holes that a file system may not have"
    assert "line" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_thread_raises_is_said() -> None:
    said = list[str]()
    with threads_told(said.append):
        thread = threading.Thread(target=lambda: 1 / 0, name="heartbeat")
        thread.start()
        thread.join()
    assert said == ["the thread 'heartbeat' has ended: ZeroDivisionError: division by zero"]


def test_what_was_printed_is_handed_on_at_the_end_of_each_capture() -> None:
    taken = list[str]()
    with follow_captures(taken.append):
        with captured(STDERR, replay=False):
            os.write(STDERR, b"first\n")
        assert taken == ["first\n"]
        with captured(STDERR, replay=False):
            os.write(STDERR, b"second\n")
    with captured(STDERR, replay=False):
        os.write(STDERR, b"third\n")
    assert taken == ["first\n", "second\n"]
