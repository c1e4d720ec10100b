"""The pinned versions: one file for people and pip, the same lines for uv, and no registry's name in either."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "deploy/constraints.txt").read_text("utf-8").splitlines() if line[0] != "#"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def named(requirement: str) -> str:
    """The package of a requirement, in its one spelling."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_uv_and_the_file_have_the_same_lines() -> None:
    again = "run: uv run --no-sync python deploy/constraints.py"
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == LINES, again


def test_each_line_is_one_version_and_no_address() -> None:
    wrong = [line for line in LINES if not re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+( ; [\w .<>='!]+)?", line)]
    assert wrong == []
    assert sorted(LINES, key=named) == LINES


def test_every_dependency_is_pinned() -> None:
    groups = PROJECT["dependency-groups"]
    asked = [*PROJECT["project"]["dependencies"], *groups["dev"]]
    pinned = {named(line) for line in LINES}
    assert [one for one in asked if named(one) not in pinned] == []
    assert all("==" in one for one in [*groups["cpu"], *PROJECT["project"]["optional-dependencies"]["gpu"]])


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_images_base_has_a_whole_version_and_can_be_pinned_by_digest(kind: str) -> None:
    text = (ROOT / f"deploy/Dockerfile.{kind}").read_text("utf-8")
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-[a-z-]+$\nFROM \$\{BASE\}$", text, re.MULTILINE)
    assert re.findall(r"^FROM .*$", text, re.MULTILINE) == ["FROM ${BASE}"]
