"""Cleaning up after a manifest: objects that it does not name leave the folders that users read."""

from collections.abc import Callable

from magbatch.ledger.layout import DRAFTS, SUPERSEDED
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Manifest
from magbatch.ledger.staging import settle, staged
from magbatch.schema import ObjectName


def strays(ledger: Ledger) -> tuple[list[ObjectName], list[str]]:
    """Compare the objects of a complete job with its manifest.

    Returns:
        Objects that the manifest does not name, left by an interrupted end; names in the manifest without an object.
    """
    names = ledger.object_names()
    manifest = ledger.manifest()  # read after the listing: a listed object that it lacks is in no later manifest either
    if manifest is None:
        return [], []
    named, there = {entry.name for entry in manifest.objects}, set(names)
    return _unnamed(names, manifest), sorted(str(name) for name in named - there)


def tidy(ledger: Ledger, confirm: Callable[[], None]) -> None:
    """Move objects that the manifest does not name to `superseded/`, and delete drafts.

    Args:
        ledger: Output of a complete job.
        confirm: Function that raises if another command works on the output, whose new objects no manifest names yet.
    """
    names, waiting = ledger.object_names(), staged(ledger.store)
    manifest = ledger.manifest()  # read after the listings, as in `strays`
    confirm()
    if manifest is not None:
        settle(ledger.store, manifest, waiting)
        for name in _unnamed(names, manifest):
            supersede(ledger, name)
    for draft in list(ledger.store.list(DRAFTS)):
        ledger.store.delete(draft.name)


def supersede(ledger: Ledger, name: ObjectName) -> None:
    """Move an object out of the folders that users read."""
    ledger.store.move(str(name), f"{SUPERSEDED}/{name}")


def _unnamed(names: list[ObjectName], manifest: Manifest) -> list[ObjectName]:
    named = {entry.name for entry in manifest.objects}
    return [name for name in names if name not in named]
