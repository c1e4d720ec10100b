"""A prompt that an image would cut waits for the next step; vLLM itself is in tests/integration/test_vllm.py."""

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

NAME = "vllm.v1.core.sched.scheduler"


class Scheduler:
    """vLLM's scheduler: finds room for so many tokens of a request."""

    room = 0

    def _try_schedule_encoder_inputs(self, request: Any, computed: int, new: int, budget: int, **_: Any) -> Any:
        return [7], min(new, self.room), budget - 1, ["external"], ["more"]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`engines.whole` over this scheduler in place of vLLM's, whose import takes seconds."""
    for depth in range(1, NAME.count(".") + 2):
        module: Any = ModuleType(".".join(NAME.split(".")[:depth]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.Scheduler = Scheduler
    monkeypatch.delitem(sys.modules, "magbatch.engines.whole", raising=False)
    yield importlib.import_module("magbatch.engines.whole")
    sys.modules.pop("magbatch.engines.whole", None)


@pytest.mark.parametrize(
    ("room", "found"),
    [(10, ([7], 10, 99, ["external"], ["more"])), (9, ([], 0, 100, [], [])), (0, ([], 0, 100, [], []))],
)
def test_a_prompt_is_read_whole_or_not_in_this_step(whole: Any, room: int, found: Any) -> None:
    scheduler = whole.WholePrompts()
    scheduler.room = room
    assert scheduler._try_schedule_encoder_inputs("request", 0, 10, 100) == found


def test_a_vllm_that_has_renamed_the_method_is_refused(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Scheduler, "_try_schedule_encoder_inputs")
    with pytest.raises(AssertionError, match="_try_schedule_encoder_inputs is missing in vLLM"):
        importlib.reload(whole)
