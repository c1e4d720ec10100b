"""Bytes come from the planned file or not at all."""

import os
import shutil
from pathlib import Path

import pytest

from magbatch.errors import ErrorCode, RowError, StorageError
from magbatch.storage import open_store
from magbatch.storage.input_file import PRINT_WHOLE_BYTES, DiskFile, InputFile, open_input
from magbatch.storage.inputs import stat_input


def opened(path: str) -> InputFile:
    now = stat_input(path)
    return open_input(path, now.size, now.tag)


def whole(path: str, size: int, tag: str) -> bytes:
    with open_input(path, size, tag) as file:
        data = file.read()
        file.check()
        return data


@pytest.fixture
def path(root: str) -> str:
    open_store(root).write("a", bytes(range(256)) * 4)
    return f"{root}/a"


def test_any_range_can_be_read(path: str) -> None:
    with opened(path) as file:
        assert file.read_at(250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
        assert file.read_at(1020, 10) == bytes([252, 253, 254, 255])
        assert file.read_at(5000, 10) == b""
        assert (file.seek(-4, os.SEEK_END), file.read(), file.tell()) == (1020, bytes([252, 253, 254, 255]), 1024)
        file.check()


@pytest.mark.parametrize("content", [b"x" * 1024, b"longer" * 400, b"short"])
def test_another_content_is_another_file(path: str, content: bytes) -> None:
    with opened(path) as file:
        root, _, name = path.rpartition("/")
        open_store(root).write(name, content)
        planned = file.size_bytes, file.tag
    with pytest.raises(RowError) as refused:
        whole(path, *planned)
    assert refused.value.code is ErrorCode.FILE_CHANGED


def test_a_file_that_is_gone_is_gone(path: str) -> None:
    now = stat_input(path)
    root, _, name = path.rpartition("/")
    open_store(root).delete(name)
    with pytest.raises(FileNotFoundError), open_input(path, now.size, now.tag) as file:
        file.read_at(0, 1)


@pytest.mark.parametrize("size", [0, 1, PRINT_WHOLE_BYTES, PRINT_WHOLE_BYTES + 1, 5 * PRINT_WHOLE_BYTES])
def test_a_copy_has_the_same_fingerprint_and_another_end_has_not(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * size)
    copy = tmp_path / "b"
    shutil.copy2(path, copy)
    with opened(str(path)) as first, opened(str(copy)) as second:
        assert first.digest == second.digest is not None
    if size:
        copy.write_bytes(b"x" * (size - 1) + b"y")
        with opened(str(path)) as first, opened(str(copy)) as second:
            assert first.digest != second.digest


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    """Tests run as root, who may read any regular file; so the file is of another kind."""
    (tmp_path / "a").mkdir()
    now = os.stat(tmp_path / "a")
    with pytest.raises(RowError, match="not a regular file") as refused:
        DiskFile(str(tmp_path / "a"), now.st_size, str(now.st_mtime_ns))
    assert refused.value.code is ErrorCode.FILE_UNREADABLE


def test_an_input_whose_bucket_is_away_is_not_gone(s3_endpoint: str) -> None:
    """Otherwise its rows would become dead letters."""
    with pytest.raises(StorageError, match=r"s3://no-such-bucket.*: there is no such bucket") as refused:
        whole("s3://no-such-bucket/a.parquet", 100, "tag")
    assert refused.value.passing


def test_an_object_that_became_shorter_is_another(s3: str) -> None:
    open_store(s3).write("a", b"x" * 1000)
    planned = stat_input(f"{s3}/a")
    open_store(s3).write("a", b"x" * 10)
    with open_input(f"{s3}/a", planned.size, planned.tag) as file:
        with pytest.raises(RowError) as refused:
            file.read_at(900, 100)
        assert refused.value.code is ErrorCode.FILE_CHANGED
