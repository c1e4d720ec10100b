"""`input.path` -> the input files behind it, each real one once.

A folder that no one should read as plain Parquet files is refused by name: a table, whose files hold deleted rows
too, and the output of a job.
"""

import errno
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from magbatch.errors import AwsSettingsError, InputError, NoBucketError, SpecError, StorageError, short_message
from magbatch.spec import is_remote
from magbatch.storage.base import ObjectInfo
from magbatch.storage.disk import DRAFTS, PASSING_ERRNO
from magbatch.storage.formats import advice, counted, suffix_of
from magbatch.storage.s3 import S3Store, split_url
from magbatch.storage.tables import OUTPUT, folder_kind, marks, marks_of_folder, table_error

_WILDCARD = re.compile(r"[*?\[]")
ANSWERS = ("results", "errors")
# What a job writes, as far as a glob could take it for input: below an output, and below one run of a schedule.
_WRITTEN = tuple(
    f"{run}{kind}/00000000-0-0000.n1.parquet" for run in ("", "runs/2026-11-24T06-00-00Z/") for kind in ANSWERS
)
# Where a link leads nowhere: to nothing, past a file, to itself, to a name that no disk takes.
_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(slots=True)
class FoundInput:
    """What lies behind an `input.path`.

    Attributes:
        files: The input files, in the order of their names, which are whole paths or URLs.
        passed_over: Other files of a directory, by suffix; names that begin with `_` or `.` do not count.
    """

    files: list[ObjectInfo]
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def notes(self) -> list[str]:
        """What a person should know."""
        count = self.passed_over.total()
        if not count:
            return []
        were = "file that is not *.parquet was" if count == 1 else "files that are not *.parquet were"
        return [f"{count:,} {were} passed over: {counted(self.passed_over)}"]


def find_input(path: str, *, may_be_none: bool = False) -> FoundInput:
    """The input files behind a path.

    Args:
        path: A file, a directory (every *.parquet below it), or a glob, in which `**` crosses
            folders; local or s3://. Names that begin with `_` or `.` are skipped, but for those
            that a glob spells out. A file that links give several names has the one without links.
        may_be_none: No file there is no error; a directory or a bucket that is not there always is.

    Raises:
        InputError: Nothing is there, what is there is a table or the output of a job, or it can never be listed.
        StorageError: It cannot be listed now.
    """
    found = _find_s3(path) if is_remote(path) else _find_local(path)
    if not found.files and not may_be_none:
        kind = "no file matches the glob" if _WILDCARD.search(path) else "no *.parquet file here"
        if found.passed_over:
            kind += f", but {counted(found.passed_over)}; {advice(path, found.passed_over)}"
        raise InputError(f"input.path {path}: {kind}")
    found.files.sort(key=lambda file: file.name)
    return found


def input_folder(path: str) -> str:
    """The folder of an `input.path`: of a file the folder that holds it, of a glob its fixed part, else itself.

    >>> input_folder("/in/2026-*/x.parquet"), input_folder("*.parquet"), input_folder("s3://bucket/in/")
    ('/in', '.', 's3://bucket/in')
    """
    exists = not is_remote(path) and os.path.exists(path)
    wildcard = None if exists else _WILDCARD.search(path)
    if wildcard or (exists and not os.path.isdir(path)):
        fixed = path[: wildcard.start()] if wildcard else path
        folder, slash, _ = fixed.rpartition("/")
        return folder or slash or "."
    return path.rstrip("/") or "/"


def check_apart(input_path: str, output_path: str) -> None:
    """A job must not read its own answers, nor write among what it reads.

    Raises:
        SpecError: One of the two lies inside the other.
    """
    output, folder = _real(output_path), _real(input_folder(input_path))
    is_glob = folder != _real(input_path) and _WILDCARD.search(input_path) is not None
    if is_glob and _is_below(output, folder) and output != folder:
        pattern = [*folder.split("/"), *input_path[len(input_folder(input_path)) :].strip("/").split("/")]
        reached = any(_matches([*output.split("/"), *name.split("/")], pattern) for name in _WRITTEN)
    else:
        given = folder if is_glob else _real(input_path)
        reached = _is_below(output, given) or _is_below(given, output)
    if reached:
        raise SpecError(
            f"output.path {output_path} and input.path {input_path} lie one inside the other: the job would read its "
            "own answers; give each a folder of its own"
        )


def _real(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


# On a disk


def _find_local(path: str) -> FoundInput:
    path, passed_over = os.path.join(os.getcwd(), path), Counter[str]()
    with _input_errors(path):
        if _WILDCARD.search(path) and not os.path.exists(path):
            parts = path.split("/")
            fixed = next(index for index, part in enumerate(parts) if _WILDCARD.search(part))
            root = "/".join(parts[:fixed]) or "/"
            names = [name for name in _expanded(root, parts[fixed:]) if _matches(name.split("/"), parts)]
        elif os.path.isdir(path):
            root = path
            names = list(_data_below(path, passed_over))
        elif os.path.exists(path):
            root, names = os.path.dirname(path), [path]
        else:
            raise InputError(f"input.path {path}: there is no such file or directory")
        files = _each_once(path, root, names)
        _refuse_local(path, root, [file.name for file in files])
        return FoundInput(files, passed_over)


@contextmanager
def _input_errors(path: str) -> Iterator[None]:
    """Raise what a disk refuses for now as StorageError, and what it refuses for ever as InputError."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or path, error.strerror or error
        if error.errno in PASSING_ERRNO:
            raise StorageError(f"{where}: {reason}", passing=True) from error
        raise InputError(
            f"input.path {path}: {where} cannot be read: {reason}; give this user access to it, or take it away"
        ) from error


def _data_below(root: str, passed_over: Counter[str]) -> Iterator[str]:
    for folder in _folders(root):
        for entry in _entries(folder):
            if _is_data(os.path.relpath(entry.path, root)):
                yield entry.path
            elif not entry.name.startswith(("_", ".")):
                with suppress(OSError):  # a link that leads nowhere is no file
                    passed_over.update([suffix_of(entry.name)] if entry.is_file() else [])


def _folders(root: str) -> Iterator[str]:
    """A folder and those below it, each real one once: those that links lead to last. Hidden ones are left out."""
    plain, linked = [root], list[str]()
    seen = set[object]()
    while plain or linked:
        folder = plain.pop() if plain else linked.pop(0)
        try:
            found, real = os.stat(folder), os.path.realpath(folder)
        except FileNotFoundError:  # moved since it was seen
            continue
        # Mounts give one folder two paths; a folder's number alone may be used again by some network disks.
        marks = {real, (found.st_dev, found.st_ino, found.st_ctime_ns) if found.st_ino else real}
        if marks & seen:
            continue
        seen |= marks
        yield folder
        for entry in _entries(folder):
            if entry.name.startswith(("_", ".")):
                continue
            if entry.is_symlink():
                linked.extend([entry.path] if _is_folder(entry.path) else [])
            elif entry.is_dir():
                plain.append(entry.path)


def _is_folder(path: str) -> bool:
    """Whether a path leads to a folder; unlike `os.path.isdir`, what cannot be known is raised."""
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
    except (FileNotFoundError, NotADirectoryError):  # moved since it was seen
        return []
    return found


def _expanded(folder: str, parts: list[str]) -> Iterator[str]:
    """Paths that a glob may mean, from a folder on; `**` enters each real folder once."""
    first, *rest = parts
    if first == "**":
        for below in _folders(folder):
            yield from _expanded(below, rest) if rest else (entry.path for entry in _entries(below))
        return
    if _WILDCARD.search(first):
        paths = [os.path.join(folder, entry.name) for entry in _entries(folder) if _matches([entry.name], [first])]
    else:
        paths = [os.path.join(folder, first)]
    for path in paths:
        if not rest:
            yield path
        elif _is_folder(path):
            yield from _expanded(path, rest)


def _each_once(path: str, root: str, names: Iterable[str]) -> list[ObjectInfo]:
    """The files by these names; of several names of one file, the one that no link leads to."""
    base = os.path.realpath(root)
    reals: dict[str, str] = {}
    found: list[tuple[bool, str, os.stat_result]] = []
    for name in dict.fromkeys(names):
        try:
            state = os.stat(name)
        except OSError as error:
            if error.errno not in _NOWHERE:
                raise
            if os.path.islink(name) and (error.errno != errno.ELOOP or name.endswith(".parquet")):
                gone = "that leads to itself" if error.errno == errno.ELOOP else "to a file that is not there"
                raise InputError(f"input.path {path}: {name} is a link {gone}; mend it, or take it away") from error
            continue  # not there, no longer, or a link that can never be a file
        if not stat.S_ISREG(state.st_mode):
            if stat.S_ISDIR(state.st_mode):
                continue
            raise InputError(f"input.path {path}: {name} is neither a file nor a folder")
        folder = os.path.dirname(name)
        if folder not in reals:
            reals[folder] = os.path.realpath(folder)
        plain = os.path.normpath(os.path.join(base, os.path.relpath(folder, root)))
        is_linked = os.path.islink(name) or reals[folder] != plain
        found.append((is_linked, name, state))
    once: dict[object, ObjectInfo] = {}
    for _, name, state in sorted(found, key=lambda item: item[:2]):
        number = state.st_ino or os.path.realpath(name)  # some network disks have no numbers, or use one again
        once.setdefault(
            (state.st_dev, number, state.st_size, state.st_mtime_ns),
            ObjectInfo(name, state.st_size, str(state.st_mtime_ns)),
        )
    return list(once.values())


def _refuse_local(path: str, root: str, names: list[str]) -> None:
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
        is_given = _is_below(folder, os.path.abspath(root))
        kind = folder_kind(folder, inside[folder], listed=is_given)
        if kind is not None:
            raise table_error(path, folder, kind)
        if is_given and _is_output(folder):
            _refuse_output(path, folder)


def _is_output(folder: str) -> bool:
    """Whether a folder holds the records of a job: more than drafts, which any written object leaves a place for."""
    with suppress(OSError):
        return any(f"{OUTPUT}/{name}/" != DRAFTS for name in os.listdir(os.path.join(folder, OUTPUT)))
    return False


def _refuse_output(path: str, folder: str) -> None:
    """Raises unless the path spells out that it means the answers of that job."""
    if not set(ANSWERS) & set(path.split("/")):
        raise InputError(
            f"input.path {path}: {folder} is the output of a job; its answers are {folder}/results/*.parquet, and "
            "other input needs a folder without it"
        )


# In object storage


def _find_s3(path: str) -> FoundInput:
    bucket, key = split_url(path)
    wildcard, prefix = _WILDCARD.search(key), listed_prefix(key)
    store, passed_over = S3Store(f"s3://{bucket}"), Counter[str]()
    try:
        found = list(store.list(prefix))
    except NoBucketError as error:
        raise InputError(f"input.path {path}: there is no such bucket") from error
    except StorageError as error:
        if not error.lasting or isinstance(error, AwsSettingsError):  # which says itself what to mend
            raise
        how = "cannot be listed" if error.mistake else "can never be listed"
        raise InputError(f"input.path {path} {how}: {short_message(str(error))}") from error
    if any(item.name == key for item in found):
        kept = [item for item in found if item.name == key]
    elif wildcard:
        kept = [item for item in found if _matches(item.name.split("/"), key.split("/"))]
    else:
        folder = key if not key or key.endswith("/") else f"{key}/"
        below = [item for item in found if item.name.startswith(folder)]
        kept = [item for item in below if _is_data(item.name[len(folder) :])]
        others = (item.name for item in below if not _is_data(item.name[len(folder) :]))
        passed_over.update(suffix_of(name) for name in others if _is_shown(name[len(folder) :]))
    _refuse_s3(path, store, prefix, [item.name for item in found], [item.name for item in kept])
    return FoundInput([ObjectInfo(f"s3://{bucket}/{item.name}", item.size, item.tag) for item in kept], passed_over)


def listed_prefix(key: str) -> str:
    """What the names begin with that a key, or a glob over keys, may mean.

    >>> listed_prefix("in/2026-*/x.parquet"), listed_prefix("in/")
    ('in/2026-', 'in/')
    """
    wildcard = _WILDCARD.search(key)
    return key[: wildcard.start()] if wildcard else key


def _refuse_s3(path: str, store: S3Store, prefix: str, found: list[str], kept: list[str]) -> None:
    marked = {folder: kind for name in found for folder, kind in marks(name)}
    top = prefix.rpartition("/")[0]
    above = [top[: match.start()] for match in re.finditer("/", top)] + ([top] if top else [])
    if kept:
        marked |= {folder: kind for folder in ["", *above] for kind in marks_of_folder(store, folder)}
    for name in kept if marked else ():
        folder = name
        while folder:
            folder = folder.rpartition("/")[0]
            kind = marked.get(folder)
            if kind == OUTPUT:
                _refuse_output(path, f"{store.root}/{folder}".rstrip("/"))
            elif kind is not None:
                raise table_error(path, f"{store.root}/{folder}".rstrip("/"), kind)


# Names


def _is_data(relative: str) -> bool:
    return relative.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in relative.split("/"))


def _is_shown(relative: str) -> bool:
    """Whether a key is that of a file which no one hides; a key that ends with a slash stands for a folder."""
    parts = relative.split("/")
    return parts[-1] != "" and not any(part.startswith(("_", ".")) for part in parts)


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether a glob means a name, both cut at the slashes: as on a disk, but `_` hides a name as `.` does."""
    if not name or not pattern:
        return not name and all(part == "**" for part in pattern)
    first, *rest = pattern
    if first == "**" and _matches(name, rest):
        return True
    if name[0].startswith(("_", ".")) and name[0][0] != first[:1]:
        return False
    if first == "**":
        return _matches(name[1:], pattern)
    return fnmatchcase(name[0], first) and _matches(name[1:], rest)
