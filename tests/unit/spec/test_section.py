"""The base of all sections: unknown fields, booleans as numbers, and locations."""

from typing import Any

import pytest
from pydantic import ValidationError
from support.small_spec import complaint_about, spec

from magbatch.spec import is_remote, reachable


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("", "is empty: write a local path or s3://bucket/prefix"),
        ("s3://", "names no bucket: write s3://bucket/prefix"),
        ("s3:///x", "names no bucket"),
        ("S3://bucket/x", "only local paths and s3:// are known"),
        ("file:///x", "only local paths and s3:// are known"),
        ("http://host/x", "only local paths and s3:// are known"),
    ],
)
def test_a_location_that_no_storage_has_is_refused(path: str, right: str) -> None:
    with pytest.raises(ValueError, match=right):
        reachable(path)
    for field in ("input.path", "output.path"):
        assert right in complaint_about(field, path)


@pytest.mark.parametrize(("path", "remote"), [("s3://bucket", True), ("/data", False), ("data/*.parquet", False)])
def test_a_location_is_local_or_remote(path: str, remote: bool) -> None:
    assert reachable(path) == path
    assert is_remote(path) is remote


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("sampling.temperature", False, "write a number (it is false)"),
        ("sampling.n", True, "write a whole number (it is true)"),
        ("sampling.seed", True, "write a whole number (it is true)"),
        ("limits.zzz", 1, "no such field"),
    ],
)
def test_true_is_not_a_number_and_no_field_is_unknown(field: str, value: Any, right: str) -> None:
    assert right in complaint_about(field, value)


def test_true_is_accepted_by_a_boolean_field() -> None:
    assert spec(sampling__ignore_eos=True).sampling.ignore_eos is True


def test_a_section_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().sampling.n = 2
