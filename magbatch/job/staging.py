"""The report and its page change together with the manifest that has their checksums, wherever a process dies.

They are written beside their places first, under names that hold their checksums. Once a manifest names them they are
moved to their places, by the command that wrote it or by the next one.
"""

from collections.abc import Mapping

from magbatch.job.layout import STAGED
from magbatch.job.manifest import Manifest, StoredFile
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


def is_settled(store: Store) -> bool:
    """Whether nothing is staged."""
    return not any(True for _ in store.list(STAGED))


def settle(store: Store, manifest: Manifest) -> None:
    """Move what the manifest names to its place, and delete what it does not name."""
    places = {_beside(file): file.name for file in manifest.files}
    for item in list(store.list(STAGED)):
        if item.name in places:
            store.move(item.name, places[item.name])
        else:
            store.delete(item.name)


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
        names.append(_beside(file))
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
