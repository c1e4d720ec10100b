"""The developer's door: one version everywhere, the Makefile, the hooks, the order of CI, types for users."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import magbatch

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = {"unit", "lint", "types", "test", "fire", "docs", "bench"}


def test_the_version_is_the_same_everywhere() -> None:
    version = magbatch.__version__
    assert PROJECT["project"]["version"] == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1] == version  # type: ignore[index]
    files = [*(ROOT / "deploy").rglob("*"), *ROOT.glob("*.md"), ROOT / "magbatch" / "cli" / "deploy.py"]
    tags = {
        (path.name, tag)
        for path in files
        if path.is_file()
        for tag in re.findall(r"magbatch:(\d[\w.]*)-[cg]pu", path.read_text(encoding="utf-8"))
    }
    assert tags
    assert {tag for _, tag in tags} == {version}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_each_target_of_the_makefile_is_told_in_one_line() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    told = dict(re.findall(r"^([a-z]+):.*?##\s+(.+)$", text, re.MULTILINE))
    assert told.keys() >= TARGETS
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines() if line} == told.keys()
    for target in told:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


def test_the_makefile_leaves_the_environment_alone() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"uv run(?! --no-sync)|uv sync(?!`)", text) == []


def test_hooks_are_local_and_need_no_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [one["repo"] for one in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-format", "ruff-check", "mypy", "prose"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert all(hook["entry"].startswith("uv run --no-sync ") for hook in hooks)
    named = [word for hook in hooks for word in hook["entry"].split() if word.endswith(".py")]
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_ci_checks_what_takes_seconds_first() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = re.findall(r"^uv run --no-sync (ruff format|ruff check|mypy|pytest)\b", text, re.MULTILINE)
    assert steps == ["ruff format", "ruff check", "mypy", "pytest"]


def test_types_are_for_users_too() -> None:
    assert (ROOT / "magbatch" / "py.typed").is_file()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["magbatch"]
