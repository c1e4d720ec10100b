"""Spec files are read in processes of their own: each gives its spec, or what is wrong with it."""

import os
from pathlib import Path

import pytest
from support.schedules import write

from magbatch.errors import LateSpecError, SpecError
from magbatch.schedule.specs import read
from magbatch.spec import JobSpec


def test_each_file_gives_its_spec_or_its_problem_in_order(tmp_path: Path) -> None:
    write(tmp_path, "good", cron="0 6 * * *")
    (tmp_path / "wrong.yaml").write_text("name: [")
    paths = [f"{tmp_path}/{name}.yaml" for name in ("wrong", "good")]
    found = read(paths, 60)
    assert [*found] == paths
    wrong, good = found.values()
    assert isinstance(good, JobSpec)
    assert good.name == "good"
    assert isinstance(wrong, SpecError)
    assert str(wrong).startswith(f"{tmp_path}/wrong.yaml: ")


def test_a_reader_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    write(tmp_path, "a", cron="0 6 * * *")
    (found,) = read([f"{tmp_path}/a.yaml"], limit_s=0).values()
    assert isinstance(found, LateSpecError)
    assert "not read within 0 s" in str(found)
