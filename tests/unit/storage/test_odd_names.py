"""Entries that look like objects of an output and are not are named, with the reason."""

import os
from pathlib import Path

from magbatch.storage import open_store
from magbatch.storage.odd_names import odd_names


def test_what_only_looks_like_an_object_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for name in ("results/a", "own/b", "Own/b", "elsewhere/c", "errors.txt"):
        store.write(name, b"x")
    os.mkfifo(tmp_path / "results/pipe")
    (tmp_path / "results/folder").mkdir()
    (tmp_path / "own/link").symlink_to("b")
    (tmp_path / "errors").symlink_to("elsewhere")
    found = dict(odd_names(str(tmp_path), ["results", "errors"], ["own/b", "own/link", "own/none"]))
    assert found == {
        "Own": "its name differs from own in upper and lower case only",
        "errors": "a symbolic link, not the folder itself",
        "results/folder": "a folder, not an object",
        "results/pipe": "neither a file nor a folder",
        "own/link": "a symbolic link, not the file itself",
    }
