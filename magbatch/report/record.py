"""The run's own record, `_magbatch/progress.json`, as any version has written it: its fields, and its reading.

Readers on other machines and later runs use it. No row depends on it.
"""

import json
from contextlib import suppress
from typing import Annotated, Any, Required, cast

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from magbatch.ledger.holder import LATEST_S
from magbatch.ledger.layout import RECORD
from magbatch.storage import Store

ALIVE_S = 60.0  # age of a record beyond which its run counts as dead: twelve writes have failed by then

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Moment = Annotated[float, Field(ge=0, lt=LATEST_S)]


class StoredEnd(TypedDict, total=False):
    """End of a run, as a record holds it."""

    state: str
    at: _Moment
    error: str | None
    message: str
    exit_code: int


class StoredEta(TypedDict):
    """An `Eta`, as a record holds it."""

    expected_s: _Amount
    early_s: _Amount
    late_s: _Amount


class StoredUsage(TypedDict, total=False):
    """Fields of a `JobUsage` that are shown to people."""

    device_s: Required[_Amount]


class ProgressRecord(TypedDict, total=False):
    """A record of any version. A record with a field of another type is not used at all.

    Fields that this version does not know are kept. `history` and `versions` are checked by their readers.
    """

    version: object
    at: Required[_Moment]
    running: bool
    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    place: str
    since: str
    started: _Moment
    planned: _Count
    done: _Count
    before: _Count
    failed: _Count
    truncated: _Count
    rows_per_s: _Amount
    tokens_per_s: _Amount
    starting: bool
    replicas: dict[str, _Count]
    eta: StoredEta | None
    cost: _Amount | None
    currency: str
    spent: StoredUsage
    history: object
    versions: object
    runs: list[Any]
    end: StoredEnd | None


_RECORD = TypeAdapter(ProgressRecord)


def last_record(store: Store) -> ProgressRecord | None:
    """Read the last record; None if no run has written a record, or it cannot be parsed.

    Raises:
        StorageError: Storage refuses the read.
    """
    with suppress(FileNotFoundError, ValueError, RecursionError):
        found = json.loads(store.read(RECORD))
        if isinstance(found, dict) and found.get("version") == 1 and "at" in found:
            _RECORD.validate_python(found, strict=True)
            return cast(ProgressRecord, found)  # as it was read: a validated copy would lose unknown fields
    return None


def rewrite(store: Store, **changes: Any) -> None:
    """Change fields of the last record of a run that has ended. Nothing happens if there is no record.

    Raises:
        StorageError: Storage refuses the read or the write.
    """
    if (found := last_record(store)) is not None:
        store.write(RECORD, json.dumps({**found, **changes}).encode())
