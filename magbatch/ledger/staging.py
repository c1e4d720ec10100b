"""Staging makes the report, its page and the manifest with their checksums change together, even if a process dies.

New files are first written to `_magbatch/staged/`, under names that hold their checksums. Once a manifest names them,
they get their final names, from the command that wrote the manifest or from the next one.
"""

from collections.abc import Collection, Mapping

from magbatch.ledger.layout import STAGED
from magbatch.ledger.manifest import Manifest, StoredFile
from magbatch.storage import Store


def stage(store: Store, files: Mapping[str, bytes]) -> tuple[StoredFile, ...]:
    """Write files to the staging folder.

    Args:
        store: Storage of the output.
        files: Contents by file name.
    """
    found = tuple(StoredFile.of(name, data) for name, data in files.items())
    for file in found:
        store.write(_staged_name(file), files[file.name])
    return found


def staged(store: Store) -> list[str]:
    """Names of all staged files."""
    return [item.name for item in store.list(STAGED)]


def place(store: Store, manifest: Manifest, names: Collection[str]) -> None:
    """Give staged files that a manifest names their final names; files that are not staged are left alone.

    Args:
        store: Storage of the output.
        manifest: Manifest that names the files.
        names: Names of the files to move.
    """
    for file in manifest.files:
        if file.name in names:
            store.move(_staged_name(file), file.name)


def settle(store: Store, manifest: Manifest, found: Collection[str]) -> None:
    """Give staged files that the manifest names their final names, and delete other staged files.

    Args:
        store: Storage of the output.
        manifest: Manifest of the job, as it is stored now.
        found: Names of staged files, listed before the manifest was read and the lease last confirmed. Files staged
            later belong to a command that has taken the output over, and its manifest may name them.
    """
    final_names = {_staged_name(file): file.name for file in manifest.files}
    for name in found:
        if name in final_names:
            store.move(name, final_names[name])
        else:
            store.delete(name)


def is_staged(store: Store, file: StoredFile) -> bool:
    """Whether a file that a manifest names is still staged."""
    return any(item.name == _staged_name(file) for item in store.list(_staged_name(file)))


def read_named(store: Store, manifest: Manifest, name: str) -> bytes:
    """Read one of the job's own files as the manifest names it, under its final name or from the staging folder.

    Raises:
        FileNotFoundError: Neither of the two files exists with the manifest's checksum.
    """
    file, names = manifest.file(name), [name]
    if file is not None:
        names += [_staged_name(file), name]  # the final name once more: the file may just have been moved there
    for candidate in names:
        try:
            data = store.read(candidate)
        except FileNotFoundError:
            continue
        if manifest.vouches_for(name, data):
            return data
    raise FileNotFoundError(f"{store.root}/{name}")


def _staged_name(file: StoredFile) -> str:
    return f"{STAGED}{file.sha256}-{file.name.rpartition('/')[2]}"
