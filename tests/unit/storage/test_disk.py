"""Promises of a store on a disk alone: synced names, drafts out of sight, links and pipes."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from magbatch.errors import FullDiskError, StorageError
from magbatch.storage import open_store
from magbatch.storage.disk import DRAFTS, local_errors


def names(root: str, prefix: str) -> list[str]:
    return [item.name for item in open_store(root).list(prefix)]


def test_a_listing_of_a_disk_enters_only_what_it_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    for name in ("results/1-a", "results/2/x", "errors/1", "_magbatch/spec.yaml", "_magbatch/retries/0/results/1-a"):
        store.write(name, b"x")
    entered: list[str] = []
    real = os.scandir

    def noted(path: str) -> Any:
        entered.append(os.path.relpath(path, tmp_path))
        return real(path)

    monkeypatch.setattr(os, "scandir", noted)
    for prefix, found, folders in (
        ("results/1-", ["results/1-a"], ["results"]),
        ("results/", ["results/1-a", "results/2/x"], ["results", "results/2"]),
        ("_magbatch/s", ["_magbatch/spec.yaml"], ["_magbatch"]),
        ("err", ["errors/1"], [".", "errors"]),
    ):
        entered.clear()
        assert names(str(tmp_path), prefix) == found
        assert sorted(entered) == folders


def test_what_a_disk_was_given_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is on the disk before the call comes back: its folder is synced, and those above it that are new."""
    synced: dict[str, list[str]] = {}
    real = os.fsync

    def noted(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if os.path.isdir(path):
            synced[os.path.relpath(path, tmp_path)] = sorted(os.listdir(path))
        real(handle)

    monkeypatch.setattr(os, "fsync", noted)
    store = open_store(str(tmp_path / "new/out"))
    store.write("results/a", b"a")
    assert synced["new/out/results"] == ["a"]
    assert "out" in synced["new"]
    assert "new" in synced["."]
    assert "results" in synced["new/out"]
    synced.clear()
    assert store.create("results/b", b"b")
    assert synced == {"new/out/results": ["a", "b"]}
    assert store.replace("results/b", b"c", b"b")
    synced.clear()
    store.move("results/b", "old/b")
    assert synced["new/out/old"] == ["b"]
    assert "b" not in synced["new/out/results"]


def test_drafts_of_a_disk_lie_apart_and_are_listed_only_where_they_are_asked_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("results/a", b"")
    draft = tmp_path / DRAFTS / "left-by-a-crash"
    draft.write_bytes(b"half")
    assert names(str(tmp_path), "") == ["results/a"]
    assert names(str(tmp_path), "_magbatch/") == []
    assert names(str(tmp_path), DRAFTS) == [f"{DRAFTS}left-by-a-crash"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "results/a").mkdir(parents=True)  # a folder stands where the object should be
    with pytest.raises(StorageError, match=r"results/a: Is a directory"):
        store.write("results/a", b"data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_disk_that_refuses_is_a_storage_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=f"{tmp_path}/file/a"):
        store.write("a", b"")
    with pytest.raises(StorageError, match=f"{tmp_path}/file/a"):
        store.read("a")
    with pytest.raises(StorageError, match=f"{tmp_path}/file"):
        list(store.list(""))


def test_a_listing_shows_files_and_links_to_files_and_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("results/a", b"a")
    folder = tmp_path / "results"
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("a")
    (folder / "lost").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    (folder / "loop").symlink_to(".")
    (folder / "up").symlink_to("..")
    assert names(str(tmp_path), "results/") == ["results/a", "results/link"]
    assert store.read("results/pipe") == b""


@pytest.mark.parametrize(
    ("number", "kind", "passing"),
    [
        (errno.ENOSPC, FullDiskError, True),
        (errno.EDQUOT, FullDiskError, True),
        (errno.ESTALE, StorageError, True),
        (errno.EIO, StorageError, True),
        (errno.EACCES, StorageError, False),
        (errno.EROFS, StorageError, False),
    ],
)
def test_an_error_of_a_disk_tells_whether_it_may_pass(number: int, kind: type[StorageError], passing: bool) -> None:
    with pytest.raises(StorageError, match=rf"^/out/a: {os.strerror(number)}") as caught, local_errors("/out/a"):
        raise OSError(number, os.strerror(number))
    assert (type(caught.value), caught.value.passing) == (kind, passing)


def test_a_missing_file_is_not_an_error_of_the_disk_but_a_missing_folder_under_a_write_is() -> None:
    with pytest.raises(FileNotFoundError), local_errors("/out/a"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    with pytest.raises(StorageError) as caught, local_errors("/out/a", writing=True):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert caught.value.passing
