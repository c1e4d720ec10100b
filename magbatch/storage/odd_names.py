"""What a disk shows by the name of an object and is none: links, folders, pipes, and names in other case."""

import os
from collections.abc import Iterable, Iterator

from magbatch.storage.disk import local_errors


def odd_names(root: str, folders: Iterable[str], files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find what is no plain file where objects should be.

    Args:
        root: A directory that holds objects as files.
        folders: Folders below it that hold objects and nothing else.
        files: Names of further objects.

    Returns:
        Name relative to the root, and what is odd about it.
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
