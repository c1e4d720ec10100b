from types import SimpleNamespace
from typing import Any

import pytest
import ray


class LocalHandle:
    """A handle of an actor without Ray: a call runs at once, and its reference is the answer itself.

    Args:
        state: The object that the actor would be.
    """

    def __init__(self, state: Any) -> None:
        self.state = state
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.calls.append((method, *arguments))
            return getattr(self.state, method)(*arguments)

        return SimpleNamespace(remote=remote)

    def called(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of a method."""
        return [call[1:] for call in self.calls if call[0] == method]


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> type[LocalHandle]:
    """Ray's `get`, `wait` and `kill` for local handles; gives their class."""
    monkeypatch.setattr(ray, "get", lambda found, timeout=None: found)
    monkeypatch.setattr(ray, "wait", lambda found, timeout=None: (found, []))
    return LocalHandle
