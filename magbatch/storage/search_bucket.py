"""Find the input files behind an s3:// `input.path`, and refuse tables and outputs of jobs."""

import re
from collections import Counter

from magbatch.errors import AwsSettingsError, InputError, StorageError, short_message
from magbatch.storage.base import ObjectInfo
from magbatch.storage.formats import suffix_of
from magbatch.storage.globs import WILDCARD, is_data, is_hidden, listed_prefix, matches
from magbatch.storage.s3 import S3Store, split_url
from magbatch.storage.tables import OUTPUT, marks, marks_of_folder, refuse_output, table_error


def find_in_bucket(path: str) -> tuple[list[ObjectInfo], Counter[str]]:
    """Find the objects behind a path.

    Args:
        path: s3:// URL of an object, a folder or a glob.

    Returns:
        Objects, named by URL; number of other objects in a folder, by suffix.

    Raises:
        InputError: The bucket does not exist or can never be listed, or an object belongs to a table or an output.
        StorageError: The bucket cannot be listed now.
    """
    bucket, key = split_url(path)
    store, prefix, passed_over = S3Store(f"s3://{bucket}"), listed_prefix(key), Counter[str]()
    found = _listed(path, store, prefix)
    if any(item.name == key for item in found):
        kept = [item for item in found if item.name == key]
    elif WILDCARD.search(key):
        kept = [item for item in found if matches(item.name.split("/"), key.split("/"))]
    else:
        folder = key if not key or key.endswith("/") else f"{key}/"
        below = [item for item in found if item.name.startswith(folder)]
        kept = [item for item in below if is_data(item.name[len(folder) :])]
        rest = (item.name[len(folder) :] for item in below if not is_data(item.name[len(folder) :]))
        passed_over.update(suffix_of(name) for name in rest if _is_shown(name))
    _refuse(path, store, prefix, [item.name for item in found], [item.name for item in kept])
    return [ObjectInfo(f"s3://{bucket}/{item.name}", item.size, item.tag) for item in kept], passed_over


def _listed(path: str, store: S3Store, prefix: str) -> list[ObjectInfo]:
    try:
        return list(store.list(prefix))
    except StorageError as error:
        if error.missing_root:
            raise InputError(f"input.path {path}: there is no such bucket") from error
        if not error.lasting or isinstance(error, AwsSettingsError):  # whose message names the setting to fix
            raise
        how = "cannot be listed" if error.mistake else "can never be listed"
        raise InputError(f"input.path {path} {how}: {short_message(str(error))}") from error


def _is_shown(relative: str) -> bool:
    """Whether a key names a file that is not hidden. A key that ends with a slash stands for a folder."""
    names = relative.split("/")
    return names[-1] != "" and not any(is_hidden(name) for name in names)


def _refuse(path: str, store: S3Store, prefix: str, found: list[str], kept: list[str]) -> None:
    """Refuse tables and outputs.

    Args:
        path: `input.path`, for messages.
        store: Store of the whole bucket.
        prefix: Prefix that was listed.
        found: Keys that were listed.
        kept: Keys of the input files among them.

    Raises:
        InputError: An input file lies in a table or in a job's output.
    """
    marked = {folder: kind for name in found for folder, kind in marks(name)}
    top = prefix.rpartition("/")[0]
    above = [top[: match.start()] for match in re.finditer("/", top)] + ([top] if top else [])
    if kept:  # the listing does not show marks in folders above the prefix
        marked |= {folder: kind for folder in ["", *above] for kind in marks_of_folder(store, folder)}
    for name in kept if marked else ():
        folder = name
        while folder:
            folder = folder.rpartition("/")[0]
            kind = marked.get(folder)
            if kind == OUTPUT:
                refuse_output(path, f"{store.root}/{folder}".rstrip("/"))
            elif kind is not None:
                raise table_error(path, f"{store.root}/{folder}".rstrip("/"), kind)
