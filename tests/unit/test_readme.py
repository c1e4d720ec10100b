"""The README's spec shows every field, and is one that runs."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from magbatch.spec import JobSpec, parse

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """Field names, as nested as the spec is."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        found[name] = fields(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return found


def shape(node: Any, like: Any) -> Any:
    return {name: shape(child, like[name]) for name, child in node.items()} if isinstance(like, dict) else None


def test_every_field_of_the_spec_is_shown_with_its_description() -> None:
    match = re.search(r"## The job spec\n.*?```yaml\n(.*?)```", README, re.DOTALL)
    assert match is not None
    text = match.group(1)
    assert shape(yaml.safe_load(text), fields(JobSpec)) == fields(JobSpec)
    assert parse(text).name == "invoices-november"

    def descriptions(model: type[BaseModel]) -> list[str]:
        found = []
        for field in model.model_fields.values():
            kind = field.annotation
            nested = isinstance(kind, type) and issubclass(kind, BaseModel)
            found += descriptions(kind) if nested else [field.description or ""]
        return found

    missing = [one for one in descriptions(JobSpec) if f"# {one}\n" not in text]
    assert missing == []


def test_every_module_has_its_line_in_the_file_tree() -> None:
    package = Path(__file__).parents[2] / "magbatch"
    tree = README[README.index("## Where things are") :]
    names = {path.name for path in package.rglob("*.py") if "tiny" not in path.parts and not path.name.startswith("__")}
    names -= {"base.py", "vllm.py", "fake.py", "disk.py", "s3.py"}  # on one line, with their folder
    assert sorted(name for name in names if f"{name} " not in tree) == []
