"""The README: specs that are complete, commands that leave the environment alone, every module in its tree."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.spec import JobSpec, parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """Field names, as nested as the spec is."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        found[name] = fields(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return found


def shape(node: Any, like: Any) -> Any:
    return {name: shape(child, like[name]) for name, child in node.items()} if isinstance(like, dict) else None


def test_every_field_of_the_spec_is_shown() -> None:
    match = re.search(r"## The job spec\n.*?```yaml\n(.*?)```", README, re.DOTALL)
    assert match is not None
    text = match.group(1)
    assert shape(yaml.safe_load(text), fields(JobSpec)) == fields(JobSpec)
    assert parse(text).name == "invoices-november"


def test_the_short_spec_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = re.search(r"## Your own job\n.*?```yaml\n(.*?)```", README, re.DOTALL)
    assert match is not None
    (tmp_path / "job.yaml").write_text(match.group(1), encoding="utf-8")
    pq.write_table(pa.table({"id": [1, 2], "question": ["What is 1 + 2?", "2 + 3 = ?"]}), tmp_path / "my-rows.parquet")
    monkeypatch.chdir(tmp_path)
    for engine in ("vllm", "fake"):
        done = CliRunner().invoke(app, ["plan", "job.yaml", "--set", f"model.engine={engine}"])
        assert done.exit_code == 0, done.output
    assert "my-answers: 2 rows in 1 file " in done.output


SHOWN = [
    *ROOT.glob("*.md"), *ROOT.glob("*/**/*.md"), *(ROOT / "jobs").glob("*.yaml"), *(ROOT / "deploy").glob("*"),
    *(ROOT / "monitoring").rglob("*.*"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "magbatch").rglob("*.py"),
]  # fmt: skip
# The two commands of the README, the first of them in the spec that it runs too.
FIRST = ["uv run magbatch run jobs/quickstart.yaml", "uv run pytest"]


def test_only_the_first_commands_may_touch_the_environment() -> None:
    found = [
        (path.relative_to(ROOT).parts[0], said[0].strip())
        for path in SHOWN
        if path.is_file() and path != Path(__file__) and ".venv" not in path.relative_to(ROOT).parts
        for said in re.finditer(r"uv\s+run\s+(magbatch|python|pytest)\b[^`#\n\"]*", path.read_text(encoding="utf-8"))
    ]
    assert [(where, said) for where, said in found if said not in FIRST] == []
    assert ("README.md", FIRST[0]) in found
    assert ("README.md", FIRST[1]) in found
