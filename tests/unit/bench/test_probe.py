"""The probe inside vLLM: its events and steps are read as they were written, and it is found only as a plugin."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from magbatch.bench import probe


def test_the_probe_is_found_as_a_plugin_where_its_folder_is_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import entry_points

    def found() -> list[str]:
        return [one.value for one in entry_points(group="vllm.general_plugins") if "magbatch" in one.name]

    assert found() == []
    monkeypatch.syspath_prepend(str(probe.plugin_folder(tmp_path)))
    assert found() == ["magbatch.bench.probe:install"]


def test_events_are_noted_with_their_time(tmp_path: Path) -> None:
    assert probe.events(tmp_path) == []
    probe.note(tmp_path, "ready")
    probe.note(tmp_path, "engine", settings={"a": 1})
    first, second = probe.events(tmp_path)
    assert (first["event"], second["event"], second["settings"]) == ("ready", "engine", {"a": 1})
    assert first["at"] <= second["at"]


def test_a_step_that_was_half_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / probe.STEPS).write_bytes(probe.STEP.pack(1.5, 3, 2) + probe.STEP.pack(2.0, 1, 4)[:7])
    assert probe.steps(tmp_path) == [(1.5, 3, 2)]


def test_a_released_engine_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probe.HELD_ENV, "1")
    probe.release(tmp_path)
    probe.hold(tmp_path)
    assert [event["event"] for event in probe.events(tmp_path)] == ["ready", "go"]


def test_settings_are_named_by_their_part_and_a_missing_part_is_none() -> None:
    parallel = SimpleNamespace(tensor_parallel_size=2, worker_cls=int)
    found = probe.resolved(SimpleNamespace(parallel_config=parallel))
    assert found["parallel_config.tensor_parallel_size"] == 2
    assert found["parallel_config.worker_cls"] == str(int)
    assert found["cache_config.block_size"] is None
