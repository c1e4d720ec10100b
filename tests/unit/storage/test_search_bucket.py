"""Input files in a bucket: a missing or misnamed bucket is a mistake in the spec, not a store that is away."""

import pytest

from magbatch.errors import InputError
from magbatch.storage import open_store
from magbatch.storage.search import find_input


def test_a_bucket_that_is_not_there_is_an_input_error(s3_endpoint: str) -> None:
    for path in ("", "/a", "/a.parquet", "/*.parquet"):
        with pytest.raises(
            InputError, match=f"input.path s3://no-such-bucket{path}: there is no such bucket".replace("*", r"\*")
        ):
            find_input(f"s3://no-such-bucket{path}")


def test_a_bucket_whose_name_no_bucket_has_is_a_mistake(s3_endpoint: str) -> None:
    with pytest.raises(InputError, match=r"^input\.path s3://No Bucket/in cannot be listed: .*not a bucket name.*$"):
        find_input("s3://No Bucket/in")


def test_other_files_of_a_folder_are_counted_but_not_hidden_ones(s3: str) -> None:
    for name in ("in/a.parquet", "in/b.csv", "in/deep/c.csv", "in/_SUCCESS", "in/.crc", "in/_tmp/d.csv", "in/deep/"):
        open_store(s3).write(name, b"x")
    found = find_input(f"{s3}/in")
    assert [file.name for file in found.files] == [f"{s3}/in/a.parquet"]
    assert found.passed_over == {".csv": 2}
