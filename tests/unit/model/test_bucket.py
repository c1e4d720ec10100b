"""A checkpoint in object storage is fetched at most once, and no more of it than is needed."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_files import FILES

from magbatch.errors import ModelError
from magbatch.model import bucket
from magbatch.model.checkpoint import locate, resolve
from magbatch.spec import ModelSpec
from magbatch.storage import open_store


def names(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


def test_a_remote_model_is_fetched_as_far_as_it_is_needed(remote: str, checkpoint: Path) -> None:
    small = locate(ModelSpec(source=remote), weights=False).path
    assert names(small) == {"params.json", "tekken.json", "SYSTEM_PROMPT.txt"}
    whole = locate(ModelSpec(source=remote), weights=True).path
    assert names(whole) == set(FILES)
    for name in FILES:
        assert (whole / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_remote_model_is_fetched_once(remote: str) -> None:
    first = locate(ModelSpec(source=remote), weights=False).path
    for name in FILES:
        open_store(remote).delete(name)
    assert locate(ModelSpec(source=remote), weights=False).path == first


def test_two_remote_models_are_two(remote: str, s3: str) -> None:
    open_store(f"{s3}/other").write("params.json", b"{}")
    open_store(f"{s3}/other").write("tekken.json", b"{}")
    assert (
        locate(ModelSpec(source=remote), weights=False) != locate(ModelSpec(source=f"{s3}/other"), weights=False).path
    )


def test_a_fetch_that_found_too_little_is_not_remembered(s3: str, own_cache: Path) -> None:
    source = f"{s3}/models/late"
    open_store(source).write("params.json", b"{}")
    with pytest.raises(ModelError, match=r"tekken.json is missing"):
        locate(ModelSpec(source=source), weights=False)
    assert not [path for path in (own_cache / "models").iterdir() if path.is_dir()]
    open_store(source).write("tekken.json", b"{}")
    assert names(locate(ModelSpec(source=source), weights=False).path) == {"params.json", "tekken.json"}


def test_fetches_at_once_on_a_node_are_one(remote: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock holds between open files, so between threads as between processes."""
    fetched: list[str] = []
    fetch = bucket.fetch_prefix

    def slowly(*arguments: Any) -> None:
        fetched.append("once")
        time.sleep(0.05)
        fetch(*arguments)

    monkeypatch.setattr(bucket, "fetch_prefix", slowly)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: locate(ModelSpec(source=remote), weights=True).path, range(3)))
    (path,) = set(found)
    assert (names(path), fetched) == (set(FILES), ["once"])
    assert [one for one in (own_cache / "models").iterdir() if one.is_dir()] == [path]


def test_a_remote_model_that_was_fetched_is_not_asked_for_again(remote: str) -> None:
    planned = ModelSpec(source=remote, revision=resolve(ModelSpec(source=remote)).revision)
    paths = [locate(planned, weights=weights).path for weights in (False, True)]
    for name in FILES:
        open_store(remote).delete(name)
    assert [locate(planned, weights=weights).path for weights in (False, True)] == paths
