"""The report and its page change together with the manifest that has their checksums, wherever a process dies.

They are written beside their places first, under names that hold their checksums. Once a manifest names them they are
moved to their places, by the command that wrote it or by the next one.
"""

from collections.abc import Collection, Mapping

from magbatch.ledger.layout import STAGED
from magbatch.ledger.manifest import Manifest, StoredFile
from magbatch.storage import Store


def stage(store: Store, files: Mapping[str, bytes]) -> tuple[StoredFile, ...]:
    """Write files beside their places.

    Args:
        store: The output.
        files: Contents by name.
    """
    found = tuple(StoredFile.of(name, data) for name, data in files.items())
    for file in found:
        store.write(_beside(file), files[file.name])
    return found


def staged(store: Store) -> list[str]:
    """What lies beside its place."""
    return [item.name for item in store.list(STAGED)]


def place(store: Store, manifest: Manifest, names: Collection[str]) -> None:
    """Move some files that a manifest names to their places; what is there already, or gone, is left alone."""
    for file in manifest.files:
        if file.name in names:
            store.move(_beside(file), file.name)


def settle(store: Store, manifest: Manifest, found: Collection[str]) -> None:
    """Move what the manifest names to its place, and delete what it does not name.

    Args:
        store: The output.
        manifest: Of its job.
        found: What was staged before the manifest was read, and before the lease was last confirmed. What came
            later is another command's, which has taken the output over: its manifest may name it.
    """
    places = {_beside(file): file.name for file in manifest.files}
    for name in found:
        if name in places:
            store.move(name, places[name])
        else:
            store.delete(name)


def is_staged(store: Store, file: StoredFile) -> bool:
    """Whether a file that a manifest names lies beside its place still."""
    return any(item.name == _beside(file) for item in store.list(_beside(file)))


def read_named(store: Store, manifest: Manifest, name: str) -> bytes:
    """One of the job's own files as the manifest names it: in its place, or beside it still.

    Raises:
        FileNotFoundError: It is in neither place, or not what the manifest names.
    """
    file, names = manifest.file(name), [name]
    if file is not None:
        names += [_beside(file), name]  # its place again: it may have come there meanwhile
    for one in names:
        try:
            data = store.read(one)
        except FileNotFoundError:
            continue
        if manifest.vouches_for(name, data):
            return data
    raise FileNotFoundError(f"{store.root}/{name}")


def _beside(file: StoredFile) -> str:
    return f"{STAGED}{file.sha256}-{file.name.rpartition('/')[2]}"
