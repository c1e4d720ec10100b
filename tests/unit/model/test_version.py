"""A job has one version of its model on every node."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_files import FILES

from magbatch.errors import ModelError
from magbatch.model.checkpoint import locate, resolve
from magbatch.spec import ModelSpec
from magbatch.storage import open_store


def names(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


def changed(store: Any, name: str) -> None:
    """Another file of the same length."""
    data = store.read(name)
    store.write(name, data[:-1] + bytes([data[-1] ^ 1]))


def test_a_job_has_one_version_of_a_remote_model_on_every_node(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(ModelSpec(source=remote)).revision
    planned = ModelSpec(source=remote, revision=first)
    small = locate(planned, weights=False).path
    assert resolve(ModelSpec(source=remote)).revision == first
    changed(open_store(remote), "consolidated.safetensors")
    second = resolve(ModelSpec(source=remote)).revision
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


@pytest.mark.parametrize("name", FILES)
def test_a_directory_whose_files_changed_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "notes.txt").write_text("of no use")
    planned = ModelSpec(source=str(folder), revision=resolve(ModelSpec(source=str(folder))).revision)
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
    revision = resolve(ModelSpec(source="builtin:tiny")).revision
    assert revision is not None
    locate(ModelSpec(source="builtin:tiny", revision=revision), weights=True)
    other = f"{revision[:-1]}{'0' if revision[-1] != '0' else '1'}"
    with pytest.raises(ModelError, match="builtin:tiny: its files have changed"):
        locate(ModelSpec(source="builtin:tiny", revision=other), weights=True)


def test_a_revision_of_files_that_have_none_is_refused(checkpoint: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^model\.revision main: .* only hub models have other revisions: remove model\.revision"
    ):
        resolve(ModelSpec(source=str(checkpoint), revision="main"))
