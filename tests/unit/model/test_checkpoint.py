"""A model's files are found wherever they are, fetched at most once, and say what the steps need to know."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from magbatch.errors import ModelError
from magbatch.model import checkpoint as checkpoint_module
from magbatch.model.checkpoint import ModelFacts, cache_dir, facts, locate, resolve
from magbatch.spec import ModelSpec
from magbatch.storage import open_store


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("MAGBATCH_CACHE", str(cache))
    return cache


FILES = ("params.json", "tekken.json", "SYSTEM_PROMPT.txt", "consolidated.safetensors")

# Where they are.


def test_the_builtin_model_is_made_on_first_use(own_cache: Path) -> None:
    path = locate(ModelSpec(source="builtin:tiny"), weights=True).path
    assert path.parent == own_cache == cache_dir()
    assert all((path / name).is_file() for name in FILES)
    assert locate(ModelSpec(source="builtin:tiny"), weights=False).path == path


def test_the_cache_is_in_the_home_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGBATCH_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/magbatch")


def test_a_local_directory_is_taken_as_it_is(checkpoint: Path) -> None:
    assert locate(ModelSpec(source=str(checkpoint)), weights=True).path == checkpoint


@pytest.mark.parametrize("missing", ["params.json", "tekken.json"])
def test_a_directory_that_is_no_checkpoint_names_what_is_missing(
    checkpoint: Path, tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / missing).unlink()
    with pytest.raises(ModelError) as caught:
        locate(ModelSpec(source=str(folder)), weights=False)
    assert str(caught.value) == (
        f"model.source {folder}: {missing} is missing; magbatch runs checkpoints in Mistral's format"
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/nowhere/model", "there is no such directory"),
        ("builtin:large", "the built-in model is builtin:tiny"),
        ("not a hub id", "the hub does not give it"),
        ("a/b/c", "the hub does not give it"),
        ("s3://no-such-bucket/model", "there is no such bucket"),
    ],
)
def test_a_model_that_is_not_there_names_the_source(s3_endpoint: str, source: str, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        locate(ModelSpec(source=source), weights=False)
    assert str(caught.value).startswith(f"model.source {source}: ")
    assert why in str(caught.value)


@pytest.fixture
def remote(s3: str, checkpoint: Path) -> str:
    """The tiny model in object storage, among other files."""
    store = open_store(f"{s3}/models/tiny")
    for name in FILES:
        store.write(name, (checkpoint / name).read_bytes())
    for name in ("README.md", "model-00001-of-00010.safetensors", "original/params.json"):
        store.write(name, b"of no use")
    return f"{s3}/models/tiny"


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
    fetch = checkpoint_module.fetch_prefix

    def slowly(*arguments: Any) -> None:
        fetched.append("once")
        time.sleep(0.05)
        fetch(*arguments)

    monkeypatch.setattr(checkpoint_module, "fetch_prefix", slowly)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: locate(ModelSpec(source=remote), weights=True).path, range(3)))
    (path,) = set(found)
    assert (names(path), fetched) == (set(FILES), ["once"])
    assert [one for one in (own_cache / "models").iterdir() if one.is_dir()] == [path]


# Which version of them a job has.


def changed(store: Any, name: str) -> None:
    """Another file of the same length."""
    data = store.read(name)
    store.write(name, data[:-1] + bytes([data[-1] ^ 1]))


def test_a_job_has_one_version_of_a_remote_model_on_every_node(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(ModelSpec(source=remote))
    planned = ModelSpec(source=remote, revision=first)
    small = locate(planned, weights=False).path
    assert resolve(ModelSpec(source=remote)) == first
    changed(open_store(remote), "consolidated.safetensors")
    second = resolve(ModelSpec(source=remote))
    assert second != first
    with pytest.raises(ModelError, match=f"{first} then, {second} now"):
        locate(planned, weights=True)
    assert locate(planned, weights=False).path == small  # fetched before; and what it holds is the same
    other = locate(ModelSpec(source=remote, revision=second), weights=True).path  # a new job has its own copy
    changed(open_store(remote), "tekken.json")
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path / "another node"))
    for revision in (first, second):
        for weights in (False, True):
            with pytest.raises(ModelError, match="its files have changed since the job was planned"):
                locate(ModelSpec(source=remote, revision=revision), weights=weights)
    assert names(other) == set(FILES)


def test_a_remote_model_that_was_fetched_is_not_asked_for_again(remote: str) -> None:
    planned = ModelSpec(source=remote, revision=resolve(ModelSpec(source=remote)))
    paths = [locate(planned, weights=weights).path for weights in (False, True)]
    for name in FILES:
        open_store(remote).delete(name)
    assert [locate(planned, weights=weights).path for weights in (False, True)] == paths


@pytest.mark.parametrize("name", FILES)
def test_a_directory_whose_files_changed_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "notes.txt").write_text("of no use")
    planned = ModelSpec(source=str(folder), revision=resolve(ModelSpec(source=str(folder))))
    (folder / "notes.txt").write_text("of no use, and changed")
    for path in folder.iterdir():
        os.utime(path)  # a copy on another node has other times
    assert locate(planned, weights=True).path == folder
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match="bring the old files back, or run the spec into a new output"):
        locate(planned, weights=True)
    if name == "consolidated.safetensors":
        assert locate(planned, weights=False).path == folder


def test_the_built_in_model_of_another_version_is_refused() -> None:
    revision = resolve(ModelSpec(source="builtin:tiny"))
    locate(ModelSpec(source="builtin:tiny", revision=revision), weights=True)
    other = f"{revision[:-1]}{'0' if revision[-1] != '0' else '1'}"
    with pytest.raises(ModelError, match="builtin:tiny: its files have changed"):
        locate(ModelSpec(source="builtin:tiny", revision=other), weights=True)


def test_a_revision_of_files_that_have_none_is_refused(checkpoint: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^model\.revision main: .* only models of the hub have others: leave model\.revision out"
    ):
        resolve(ModelSpec(source=str(checkpoint), revision="main"))


# What they say.


def written(folder: Path, params: Any) -> Path:
    (folder / "params.json").write_text(params if isinstance(params, str) else json.dumps(params))
    return folder


MAGISTRAL = {
    "max_position_embeddings": 131072,
    "vision_encoder": {"image_size": 1540, "patch_size": 14, "spatial_merge_size": 2},
}


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (MAGISTRAL, ModelFacts(131_072, 1540, 28)),
        ({"max_seq_len": 32_768}, ModelFacts(32_768, None, 0)),
        ({}, ModelFacts(131_072, None, 0)),
        ({"max_position_embeddings": None, "max_seq_len": 9, "vision_encoder": None}, ModelFacts(9, None, 0)),
        ({"vision_encoder": {"image_size": 1024, "patch_size": 16}}, ModelFacts(131_072, 1024, 16)),
    ],
)
def test_the_configuration_says_what_the_steps_need(tmp_path: Path, params: Any, wanted: ModelFacts) -> None:
    assert facts(written(tmp_path, params)) == wanted


def test_the_configuration_of_the_tiny_model(checkpoint: Path) -> None:
    assert facts(checkpoint) == ModelFacts(8192, 448, 28)


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ("{", "not a model's configuration"),
        ("[]", "not a model's configuration"),
        ({"max_seq_len": "long"}, "not a model's configuration"),
        ({"vision_encoder": [1]}, "not a model's configuration"),
        ({"vision_encoder": {"image_size": None, "patch_size": 14}}, "not a model's configuration"),
        ({"vision_encoder": {"image_size": 1540}}, "vision_encoder has no 'patch_size'"),
        ({"vision_encoder": {"patch_size": 14}}, "vision_encoder has no 'image_size'"),
    ],
)
def test_a_configuration_that_says_something_else_is_a_model_error(tmp_path: Path, params: Any, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        facts(written(tmp_path, params))
    assert str(caught.value).startswith(f"{tmp_path}/params.json: {why}")
