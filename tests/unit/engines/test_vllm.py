"""Failures of vLLM are told by their cause; whole engines are in tests/integration/test_vllm.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from magbatch.engines import vllm
from magbatch.engines.vllm import VllmEngine
from magbatch.rows import Image, Prompt, as_ids

START = """\
INFO 11-30 Loading the model
(EngineCore pid=7) ERROR 11-30 Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-30 torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
ERROR RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_a_start_that_fails_tells_the_root_cause_from_the_log() -> None:
    pointing = RuntimeError("Engine core initialization failed. See root cause above.")
    assert (
        vllm._first_cause(pointing, START) == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    assert (
        vllm._first_cause(ValueError("max_model_len is too large"), START) == "ValueError: max_model_len is too large"
    )
    assert vllm._first_cause(pointing, "no line of an error").startswith("RuntimeError: Engine core")


@pytest.mark.parametrize(
    ("codes", "log", "cause"),
    [
        ({"EngineCore": -9}, START, "its process was killed"),
        ({"EngineCore": 0}, START, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ({}, "ERROR vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue\n", "it died"),
    ],
)
def test_a_death_is_told_by_its_signal_or_its_last_error_and_looked_for_once(
    monkeypatch: pytest.MonkeyPatch, codes: dict[str, int], log: str, cause: str
) -> None:
    looks: list[None] = []

    def logged() -> str:
        looks.append(None)
        return log

    monkeypatch.setattr(vllm, "_logged_last", logged)
    engine: Any = SimpleNamespace(_ended=lambda: codes, _cause=None)
    engine._found_cause = lambda error: VllmEngine._found_cause(engine, error)
    for _ in range(2):
        assert cause in VllmEngine._cause_of_death(engine, RuntimeError("it died"))
    assert len(looks) <= 1


def test_a_prompt_has_its_ids_and_each_image_under_its_digest() -> None:
    assert vllm._as_vllm(Prompt("row", as_ids(np.array([1, 2, 3], np.int32).tobytes()))) == {
        "prompt_token_ids": [1, 2, 3]
    }
    image = Image.of(2, 1, bytes([255, 0, 0, 0, 0, 255]))
    found = vllm._as_vllm(Prompt("row", as_ids(), [image, image]))
    assert found["multi_modal_uuids"] == {"image": [image.digest, image.digest]}
    (first, _) = found["multi_modal_data"]["image"]
    assert (first.size, first.mode, first.getpixel((1, 0))) == ((2, 1), "RGB", (0, 0, 255))


def test_the_load_is_what_vllm_reported_last_and_an_unknown_record_kills_no_engine() -> None:
    stats = vllm._Stats()
    scheduler = SimpleNamespace(num_running_reqs=3, num_waiting_reqs=4, num_skipped_waiting_reqs=1, kv_cache_usage=0.5)
    stats.record(scheduler, SimpleNamespace(num_preempted_reqs=2))
    stats.record(None, SimpleNamespace(num_preempted_reqs=1))
    stats.record(SimpleNamespace(), SimpleNamespace())  # of another version
    load = stats.load()
    assert (load.running, load.queued, load.kv_cache_ratio, load.preemptions) == (3, 5, 0.5, 3)


def test_the_end_of_a_log_that_is_no_file_is_empty(capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(vllm._logged_last(), str)
