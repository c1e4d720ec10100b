"""Find directory entries that look like objects but are not: links, folders, pipes, names in the wrong case."""

import os
from collections.abc import Iterable, Iterator

from magbatch.storage.disk import local_errors


def odd_names(root: str, folders: Iterable[str], files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find entries below an output that are not plain files, or whose case is wrong.

    Args:
        root: Directory that holds objects as files.
        folders: Names of folders below it that hold only objects.
        files: Names of further objects, relative to the root.

    Yields:
        Name relative to the root, and the oddity in words.
    """
    known = {*folders, *(name.partition("/")[0] for name in files)}
    by_case = {name.casefold(): name for name in known}
    with local_errors(root):
        for entry in _entries(root):
            right = by_case.get(entry.name.casefold())
            if entry.name in known and entry.is_symlink():
                yield entry.name, "a symbolic link, not the folder itself"
            elif right is not None and entry.name not in known:
                yield entry.name, f"its name differs from {right} in upper and lower case only"
        for folder in folders:
            found = ((entry.name, _odd(entry)) for entry in _entries(f"{root}/{folder}"))
            yield from ((f"{folder}/{name}", what) for name, what in found if what is not None)
        for name in files:
            if os.path.islink(f"{root}/{name}"):
                yield name, "a symbolic link, not the file itself"


def _odd(entry: "os.DirEntry[str]") -> str | None:
    if entry.is_symlink():
        return "a symbolic link, not the object itself"
    if entry.is_dir():
        return "a folder, not an object"
    return None if entry.is_file() else "neither a file nor a folder"


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
