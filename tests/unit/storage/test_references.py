"""Files and objects that rows name are read within limits, alike from a disk and a bucket."""

import time

import pytest

from magbatch.errors import LateError
from magbatch.storage import open_store
from magbatch.storage.references import References


def test_a_referenced_file_is_read_up_to_the_limit_and_one_byte(root: str) -> None:
    open_store(root).write("a", b"0123456789")
    read, later = References(root).read, time.monotonic() + 60
    assert read(f"{root}/a", root, 100, later) == b"0123456789"
    assert read(f"{root}/a", root, 10, later) == b"0123456789"
    assert read("a", root, 4, later) == b"01234"
    with pytest.raises(FileNotFoundError):
        read("b", root, 4, later)


def test_a_file_that_comes_too_late_is_given_up(root: str) -> None:
    open_store(root).write("a", b"0123456789")
    with pytest.raises(LateError):
        References(root).read("a", root, 100, time.monotonic())
