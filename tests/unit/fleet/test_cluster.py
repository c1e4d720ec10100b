"""A cluster that cannot be used is refused before Ray starts, and a run that fails keeps what was printed."""

import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from magbatch.capture import STDERR, STDOUT, captured
from magbatch.errors import ClusterAccessError, ClusterError, InterruptedJobError, JobError, SpecError
from magbatch.fleet import cluster, devices
from magbatch.fleet.cluster import run_fleet
from magbatch.ledger.layout import DRIVER_LOG


def job_at(output: Path, gpus: int = 0) -> Any:
    replicas = SimpleNamespace(gpus=gpus, max=1, cpus=1.0)
    return SimpleNamespace(spec=SimpleNamespace(output=SimpleNamespace(path=str(output)), replicas=replicas))


def run(output: Path, *, first: bool = True, gpus: int = 0) -> None:
    nothing: Any = None
    done = np.zeros(0, dtype=np.int64)
    run_fleet(job_at(output, gpus), nothing, done, nothing, nothing, slots=1, any_may_have_rows=False, first=first)


@pytest.fixture
def nobody() -> str:
    """An address of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_an_address_of_rays_client_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ClusterAccessError, match=r"RAY_ADDRESS=ray://head:10001: Ray Client is not supported"):
        run(tmp_path)


@pytest.mark.parametrize(("first", "kind"), [(True, ClusterAccessError), (False, ClusterError)])
def test_a_cluster_that_cannot_be_reached_is_a_wrong_address_only_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str, first: bool, kind: type[JobError]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(kind, match=f"RAY_ADDRESS={nobody} cannot be used: ") as caught:
        run(tmp_path, first=first)
    assert (tmp_path / DRIVER_LOG).is_file()
    assert type(caught.value) is kind


def test_a_machine_with_too_few_gpus_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(devices, "gpus_here", lambda: 1)
    with pytest.raises(SpecError, match=r"replicas\.gpus: a replica asks for 2, this machine has 1"):
        run(tmp_path, gpus=2)


def test_a_run_that_fails_keeps_what_was_printed_and_shows_its_end(tmp_path: Path) -> None:
    session = SimpleNamespace(logs="/tmp/ray/session/logs")
    lines = ["(raylet) out of memory", "(raylet) out of memory", "\x1b[31mred\x1b[0m", "what the error says"]

    def fail(error: Exception) -> Exception:
        kept = cluster._kept
        try:
            with captured(STDOUT, STDERR, replay=False) as said, kept(said, str(tmp_path), session):  # type: ignore[arg-type]
                os.write(STDERR, ("\n".join(lines) + "\n").encode())
                raise error
        except JobError as caught:
            return caught

    notes = fail(ClusterError("what the error says: 7")).__notes__
    assert notes[0].splitlines() == [
        f"What was printed last (more in {tmp_path}/{DRIVER_LOG}):",
        "out of memory",
        "red",
    ]
    assert notes[1] == "Ray's logs, of all workers: /tmp/ray/session/logs"
    assert (tmp_path / DRIVER_LOG).read_text().splitlines()[0] == lines[0]
    assert fail(SpecError("clear by itself")).__notes__ == notes[1:]
    assert not hasattr(fail(InterruptedJobError("stopped")), "__notes__")


def test_a_signal_stops_the_run_and_handlers_are_put_back() -> None:
    stop = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with cluster._signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before
