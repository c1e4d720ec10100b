"""A tick's process knows that no person attends it, and hands over its reason as one line."""

import time
from pathlib import Path

from support.schedules import NOW

from magbatch.schedule.process import MAX_REASON_BYTES, TickProcess, reason_of


def test_a_tick_knows_that_nobody_attends_it(tmp_path: Path) -> None:
    process = TickProcess(str(tmp_path / "none.yaml"), NOW)
    try:
        deadline = time.monotonic() + 30
        while not (found := Path(f"/proc/{process.pid}/environ").read_bytes()):  # empty until the program is loaded
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert b"MAGBATCH_UNATTENDED=1" in found.split(b"\0")
    finally:
        process.kill()
        process.wait()
        process.reason()


def test_a_reason_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    process = TickProcess(str(tmp_path / "none.yaml"), NOW)
    process.kill()
    process.wait()
    process._reason.seek(0)
    process._reason.write(b"the input\n  is gone " + b"x" * MAX_REASON_BYTES)
    reason = reason_of(process)
    assert reason.startswith("the input is gone x")
    assert len(reason) <= MAX_REASON_BYTES
