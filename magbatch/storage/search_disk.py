"""Find the input files behind a local `input.path`, each real file once, and refuse tables and outputs of jobs.

Links are followed. A folder or file that links give several names counts once, and links in circles end.
"""

import errno
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from magbatch.errors import InputError, StorageError
from magbatch.storage.base import ObjectInfo
from magbatch.storage.disk import DRAFTS, PASSING_ERRNO
from magbatch.storage.formats import suffix_of
from magbatch.storage.globs import WILDCARD, is_below, is_data, is_hidden, matches
from magbatch.storage.tables import OUTPUT, folder_kind, refuse_output, table_error

# Errors of a link that leads nowhere: to nothing, past a file, to itself, or to a name too long for a disk.
_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def find_on_disk(path: str) -> tuple[list[ObjectInfo], Counter[str]]:
    """Find the files behind a path.

    Args:
        path: Local path of a file, a folder or a glob.

    Returns:
        Files, named by absolute path; number of other files in a folder, by suffix.

    Raises:
        InputError: The path does not exist or may not be read, or a file belongs to a table or an output.
        StorageError: The disk refuses for now.
    """
    path, passed_over = os.path.join(os.getcwd(), path), Counter[str]()
    with _input_errors(path):
        if WILDCARD.search(path) and not os.path.exists(path):
            parts = path.split("/")
            fixed = next(index for index, part in enumerate(parts) if WILDCARD.search(part))
            root = "/".join(parts[:fixed]) or "/"
            names = [name for name in _expanded(root, parts[fixed:]) if matches(name.split("/"), parts)]
        elif os.path.isdir(path):
            root = path
            names = list(_data_below(path, passed_over))
        elif os.path.exists(path):
            root, names = os.path.dirname(path), [path]
        else:
            raise InputError(f"input.path {path}: there is no such file or directory")
        files = _each_once(path, root, names)
        _refuse(path, root, [file.name for file in files])
        return files, passed_over


@contextmanager
def _input_errors(path: str) -> Iterator[None]:
    """Raise refusals of a disk that may pass as `StorageError`, and lasting ones as `InputError`."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or path, error.strerror or error
        if error.errno in PASSING_ERRNO:
            raise StorageError(f"{where}: {reason}", passing=True) from error
        raise InputError(
            f"input.path {path}: {where} cannot be read: {reason}; give this user access to it, or remove it"
        ) from error


def _data_below(root: str, passed_over: Counter[str]) -> Iterator[str]:
    """Yield the paths of input files below a folder, and count the other files by suffix."""
    for folder in _folders(root):
        for entry in _entries(folder):
            if is_data(os.path.relpath(entry.path, root)):
                yield entry.path
            elif not is_hidden(entry.name):
                with suppress(OSError):  # a link that leads nowhere is not a file
                    passed_over.update([suffix_of(entry.name)] if entry.is_file() else [])


def _folders(root: str) -> Iterator[str]:
    """Yield a folder and the folders below it, each real folder once, except hidden ones.

    Links are followed last, so that a folder has its name without links if it has one.
    """
    plain, linked = [root], list[str]()
    seen = set[object]()
    while plain or linked:
        folder = plain.pop() if plain else linked.pop(0)
        try:
            found, real = os.stat(folder), os.path.realpath(folder)
        except FileNotFoundError:  # removed since it was listed
            continue
        # A mount gives one folder two real paths. Some network disks reuse inode numbers, so the time counts too.
        marks = {real, (found.st_dev, found.st_ino, found.st_ctime_ns) if found.st_ino else real}
        if marks & seen:
            continue
        seen |= marks
        yield folder
        for entry in _entries(folder):
            if is_hidden(entry.name):
                continue
            if entry.is_symlink():
                linked.extend([entry.path] if _is_folder(entry.path) else [])
            elif entry.is_dir():
                plain.append(entry.path)


def _is_folder(path: str) -> bool:
    """Whether a path leads to a folder. Unlike `os.path.isdir`, errors other than a missing target are raised."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in _NOWHERE:
            return False
        raise


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # removed since it was listed
        return []
    return found


def _expanded(folder: str, parts: list[str]) -> Iterator[str]:
    """Yield the paths that a glob may select; `**` enters each real folder once.

    Args:
        folder: Folder in which the glob starts.
        parts: Components of the glob that are left.
    """
    first, *rest = parts
    if first == "**":
        for below in _folders(folder):
            yield from _expanded(below, rest) if rest else (entry.path for entry in _entries(below))
        return
    if WILDCARD.search(first):
        paths = [os.path.join(folder, entry.name) for entry in _entries(folder) if matches([entry.name], [first])]
    else:
        paths = [os.path.join(folder, first)]
    for path in paths:
        if not rest:
            yield path
        elif _is_folder(path):
            yield from _expanded(path, rest)


def _each_once(path: str, root: str, names: Iterable[str]) -> list[ObjectInfo]:
    """Return the files behind some names, each real file once, by its name without links if it has one.

    Args:
        path: `input.path`, for messages.
        root: Folder that holds the names.
        names: Paths of files, folders and links below it.
    """
    base = os.path.realpath(root)
    reals: dict[str, str] = {}
    found: list[tuple[bool, str, os.stat_result]] = []
    for name in dict.fromkeys(names):
        state = _state(path, name)
        if state is None:
            continue
        folder = os.path.dirname(name)
        if folder not in reals:
            reals[folder] = os.path.realpath(folder)
        plain = os.path.normpath(os.path.join(base, os.path.relpath(folder, root)))
        is_linked = os.path.islink(name) or reals[folder] != plain
        found.append((is_linked, name, state))
    once: dict[object, ObjectInfo] = {}
    for _, name, state in sorted(found, key=lambda item: item[:2]):
        number = state.st_ino or os.path.realpath(name)  # some network disks give no inode numbers
        # Size and time count too, because some network disks reuse inode numbers.
        once.setdefault(
            (state.st_dev, number, state.st_size, state.st_mtime_ns),
            ObjectInfo(name, state.st_size, str(state.st_mtime_ns)),
        )
    return list(once.values())


def _state(path: str, name: str) -> os.stat_result | None:
    """Return the state of the file behind a name; None for a folder, or a name without a file.

    Raises:
        InputError: The name is a link that leads nowhere, a pipe or a device.
    """
    try:
        state = os.stat(name)
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        if os.path.islink(name) and (error.errno != errno.ELOOP or name.endswith(".parquet")):
            gone = "that leads to itself" if error.errno == errno.ELOOP else "to a file that is not there"
            raise InputError(f"input.path {path}: {name} is a link {gone}; fix it or remove it") from error
        return None
    if stat.S_ISDIR(state.st_mode):
        return None
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"input.path {path}: {name} is neither a file nor a folder")
    return state


def _refuse(path: str, root: str, names: list[str]) -> None:
    """Refuse tables and outputs, even in folders above the files, and behind links.

    Args:
        path: `input.path`, for messages.
        root: Folder that was searched.
        names: Paths of the input files.

    Raises:
        InputError: A file lies in a table or in a job's output.
    """
    folders = {os.path.dirname(os.path.abspath(name)) for name in names}
    folders |= {os.path.dirname(os.path.realpath(name)) for name in names if os.path.islink(name)}
    folders |= {os.path.realpath(folder) for folder in folders}
    above, inside = {os.path.sep}, defaultdict[str, set[str]](set)
    for folder in folders:
        while folder not in above:
            above.add(folder)
            inside[os.path.dirname(folder)].add(os.path.basename(folder))
            folder = os.path.dirname(folder)
    for folder in sorted(above):
        is_given = is_below(folder, os.path.abspath(root))
        kind = folder_kind(folder, inside[folder], listed=is_given)
        if kind is not None:
            raise table_error(path, folder, kind)
        if is_given and _is_output(folder):
            refuse_output(path, folder)


def _is_output(folder: str) -> bool:
    """Whether a folder holds the records of a job. The folder for drafts does not count, since any write makes it."""
    with suppress(OSError):
        return any(f"{OUTPUT}/{name}/" != DRAFTS for name in os.listdir(os.path.join(folder, OUTPUT)))
    return False
