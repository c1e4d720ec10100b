"""A loss is one readable line, and records of other versions are read."""

import subprocess
import sys
from pathlib import Path

from magbatch.replica.losses import WHY_CHARS, Home, Loss, LossReason


def test_a_loss_names_the_replica_its_node_the_reason_and_the_log() -> None:
    loss = Loss.of(1.0, 3, Home("gpu-1 (10.0.0.7)", "/tmp/ray/worker.err"), LossReason.DEFECT, "out of\nmemory")
    assert loss.line() == (
        "replica 3 on gpu-1 (10.0.0.7) is replaced: a defect in magbatch, its log has the traceback: out of memory; "
        "log: /tmp/ray/worker.err"
    )


def test_each_reason_is_a_sentence_with_its_detail() -> None:
    for reason in LossReason:
        assert "{}" not in reason.sentence("60 s")
        assert ("60 s" in reason.sentence("60 s")) is ("{}" in reason.value)


def test_an_unknown_node_and_log_are_said_to_be_unknown() -> None:
    assert Loss(1.0, 0, "", "gone", "").line() == "replica 0 is replaced: gone; log: in Ray's folder of logs"
    assert Home("gpu-1", "/x").logs() == "log: /x on gpu-1"


def test_a_long_reason_is_cut() -> None:
    assert len(Loss.of(1.0, 0, Home(), LossReason.ENGINE_DIED, "x" * 10_000).why) <= WHY_CHARS


def test_a_record_with_fields_of_a_newer_version_is_read() -> None:
    record = {"at": 1.0, "replica": 2, "node": "n", "why": "w", "log": "l", "colour": "red"}
    assert Loss.from_dict(record) == Loss(1.0, 2, "n", "w", "l")


def test_the_log_is_the_file_behind_stderr(tmp_path: Path) -> None:
    code = "from magbatch.replica.losses import own_log; print(repr(own_log()))"
    log = tmp_path / "worker.err"
    with log.open("w") as stderr:
        to_file = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True, check=True
        )
    assert to_file.stdout.strip() == repr(str(log))
    to_pipe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert to_pipe.stdout.strip() == "''"
