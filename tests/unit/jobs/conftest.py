"""Whole small jobs: their sandboxes are real processes, and jobs with the same settings share them.

`tests/unit/sandbox`, `answers/test_checker.py` and `documents/test_renderer.py` hold how these processes start and end.
"""

import pytest
from support.shared_sandboxes import USERS, SharedSandboxes


@pytest.fixture(autouse=True)
def _shared_sandboxes(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in USERS:
        monkeypatch.setattr(user, SharedSandboxes)
