"""The settings of Ray have one place each, and what a user has set stays."""

from pathlib import Path

import pytest

from magbatch.fleet import ray_settings

ROOT = Path(__file__).parents[3]
SETTINGS = [*ray_settings.NO_UV, *ray_settings.GPUS_VISIBLE, *ray_settings.STOP_WAIT]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "mine")
    monkeypatch.delenv("TWO", raising=False)
    assert ray_settings.unset({"ONE": "1", "TWO": "2"}) == {"TWO": "2"}


@pytest.mark.parametrize("name", [*SETTINGS, f'"{ray_settings.VERSION}"'])
def test_a_setting_stands_in_one_module(name: str) -> None:
    found = [path.name for path in (ROOT / "magbatch").rglob("*.py") if name in path.read_text(encoding="utf-8")]
    assert found == ["ray_settings.py"]
