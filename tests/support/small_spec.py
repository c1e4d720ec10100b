"""The smallest valid spec, with fields set by the test; and the message for a wrong spec."""

from typing import Any

import pytest
import yaml

from magbatch.errors import SpecError
from magbatch.spec import JobSpec, parse


def whole(**fields: Any) -> dict[str, Any]:
    """Data of the smallest valid spec.

    Args:
        fields: Further fields, with `__` for the dots of their path: `input__carry=["a"]`.
    """
    data: dict[str, Any] = {
        "name": "invoices",
        "model": {"source": "builtin:tiny"},
        "input": {"path": "s3://docs/november/", "columns": {"prompt": "question"}},
        "output": {"path": "s3://results/november"},
    }
    for path, value in fields.items():
        *groups, last = path.split("__")
        node = data
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return data


def spec(*overrides: str, **fields: Any) -> JobSpec:
    """The smallest valid spec with some fields.

    Args:
        overrides: Items of `--set`.
        fields: See `whole`.
    """
    return parse(yaml.safe_dump(whole(**fields)), list(overrides))


def complaint(*overrides: str, **fields: Any) -> str:
    """The message for a wrong spec; arguments as for `spec`."""
    with pytest.raises(SpecError) as caught:
        spec(*overrides, **fields)
    return str(caught.value)


def complaint_about(field: str, value: Any) -> str:
    """The part of the message that is about one field.

    Args:
        field: Path of the field, with dots.
        value: The wrong value.
    """
    said = complaint(**{field.replace(".", "__"): value})
    _, found, rest = said.partition(f"\n  {field}: ")
    assert found, said
    return rest
