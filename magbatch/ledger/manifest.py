"""The manifest: what makes a job complete, names every object that counts, and says what they hold.

It is read strictly: a field that is missing, unknown or of another type is an error that names the field, and so is
a byte that was changed since the manifest was written. Its last field is the checksum of all that stands before it.
`finished_at`, `compacted_to_bytes` and what `retries` says of each are guarded by that checksum alone.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any, Self, TypeVar

from magbatch.errors import OutputError
from magbatch.ledger.layout import MANIFEST, NAMED_FILES, PLAN, SPEC
from magbatch.schema import ObjectName
from magbatch.totals import Totals

# 1: without checksums of the job's own files, and of the manifest itself. 2: with them.
VERSION = 2
_OWN_CHECKSUM = b',\n "manifest_sha256": '
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SHOWN_CHARS = 60
_ENTRY_FIELDS = ("name", "rows", "records", "bytes", "sha256")
_SUMS = tuple(one.name for one in fields(Totals))
_COUNTS = tuple(one.name for one in fields(Totals) if not one.name.startswith("by_"))
_NEEDED_SUMS = frozenset({"answered", "failed", "by_code", "by_status"})
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One of the job's own files as a manifest names it.

    Attributes:
        name: Below the output.
        size: Bytes.
        sha256: Checksum of the content, hex.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> Self:
        """The file with some content."""
        return cls(name, len(data), sha256(data).hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {"name": self.name, "bytes": self.size, "sha256": self.sha256}

    def fits(self, data: bytes | None) -> bool:
        """Whether some content is the file's."""
        return data is not None and self == StoredFile.of(self.name, data)


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed object as a manifest names it.

    Attributes:
        name: Name, which says kind, shards, attempt and rows.
        rows: Input rows in the object.
        records: Records in the object: with n samples a row, n for each.
        bytes: Size.
        sha256: Checksum of the content, hex.
    """

    name: ObjectName
    rows: int
    records: int
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "name": str(self.name), "rows": self.rows, "records": self.records, "bytes": self.bytes,
            "sha256": self.sha256,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """What a manifest remembers of a retry.

    Attributes:
        finished_at: Time of its end, ISO 8601.
        dropped: It was given up: then nothing else is known.
        chosen: Rows that were asked again, in words.
        set: `key.path=value` items that were asked otherwise.
        rows: Rows that were asked again.
        answered: Rows that have a new answer.
    """

    finished_at: str
    dropped: bool = False
    chosen: str = ""
    set: tuple[str, ...] = ()
    rows: int = 0
    answered: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        if self.dropped:
            return {"dropped": True, "finished_at": self.finished_at}
        return {
            "chosen": self.chosen, "set": list(self.set), "rows": self.rows, "answered": self.answered,
            "finished_at": self.finished_at,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest.

    Attributes:
        schema_version: Version of the objects' columns.
        job: The job's name.
        finished_at: Time of the job's end, ISO 8601.
        planned_rows: Input rows of the plan.
        plan_sha256: Checksum of the plan, hex.
        totals: Sums over the objects.
        objects: Objects that count, each once.
        files: The job's own files; none in version 1.
        model_revision: Version of the model's files, if the plan froze one.
        graded_by: Rule by which right answers were counted; None if an older version counted them.
        compacted_to_bytes: Target size of the last compaction.
        retries: Retries of the job, oldest first.
        unknown_sums: Names of totals that the manifest does not have: an older version did not keep them.
        version: Version of the manifest.
    """

    schema_version: str
    job: str
    finished_at: str
    planned_rows: int
    plan_sha256: str
    totals: Totals
    objects: tuple[Entry, ...]
    files: tuple[StoredFile, ...] = ()
    model_revision: str | None = None
    graded_by: int | None = None
    compacted_to_bytes: int | None = None
    retries: tuple[RetryRecord, ...] = ()
    unknown_sums: frozenset[str] = frozenset()
    version: int = VERSION

    def file(self, name: str) -> StoredFile | None:
        """One of the job's own files; None if the manifest does not name it."""
        return next((file for file in self.files if file.name == name), None)

    def vouches_for(self, name: str, data: bytes | None) -> bool:
        """Whether some content is that of one of the job's own files, as far as the manifest says."""
        return (file := self.file(name)) is None or file.fits(data)

    def to_json(self) -> bytes:
        """The manifest as it is stored."""
        optional = {
            "model_revision": self.model_revision,
            "graded_by": self.graded_by,
            "compacted_to_bytes": self.compacted_to_bytes,
            "retries": [record.to_dict() for record in self.retries] or None,
        }
        record = {
            "version": self.version,
            "schema_version": self.schema_version,
            "job": self.job,
            "finished_at": self.finished_at,
            "planned_rows": self.planned_rows,
            "plan_sha256": self.plan_sha256,
            **{name: value for name, value in optional.items() if value is not None},
            **{name: value for name, value in asdict(self.totals).items() if name not in self.unknown_sums},
            **({"files": [file.to_dict() for file in self.files]} if self.version > 1 else {}),
            "parts": [entry.to_dict() for entry in self.objects],
        }
        text = json.dumps(record, indent=1).encode()
        body = text.removesuffix(b"\n}")
        return text if self.version == 1 else body + _own_checksum(body)

    @classmethod
    def from_json(cls, data: bytes, where: str = MANIFEST, *, edited_too: bool = False) -> Self:
        """Read what `to_json` wrote, in this version or an older one.

        Args:
            data: Content of the manifest.
            where: Path of the manifest, for errors.
            edited_too: Read it also if it was changed since it was written.

        Raises:
            OutputError: It is no manifest; the message names the first field that is wrong.
        """
        try:
            return cls._parsed(data, edited_too=edited_too)
        except RecursionError:
            wrong = "it is nested too deeply"
        except ValueError as error:
            wrong = str(error)
        raise OutputError(
            f"{where} is damaged: {wrong}; bring it back from a backup, or delete it and run the spec again, which "
            "makes it anew from the objects"
        )

    @classmethod
    def _parsed(cls, data: bytes, *, edited_too: bool) -> Self:
        text = data.decode()
        found = _Fields(json.loads(text, object_pairs_hook=_once, parse_constant=_no_number), "")
        version = found.take("version", _whole)
        if version not in (1, VERSION):
            raise ValueError(f"version is {_shown(version)}; this version of magbatch knows 1 and {VERSION}")
        sums, unknown = _sums(found, _NEEDED_SUMS if version == 1 else frozenset(_SUMS))
        manifest = cls(
            version=version,
            schema_version=found.take("schema_version", _text),
            job=found.take("job", _text),
            finished_at=found.take("finished_at", _text),
            planned_rows=found.take("planned_rows", _whole),
            plan_sha256=found.take("plan_sha256", _checksum),
            totals=sums,
            objects=found.take("parts", _entries),
            files=found.take("files", _list_of(_file)) if version > 1 else (),
            model_revision=found.may_have("model_revision", _text),
            graded_by=found.may_have("graded_by", _whole) if version == 1 else found.take("graded_by", _whole),
            compacted_to_bytes=found.may_have("compacted_to_bytes", _whole),
            retries=found.may_have("retries", _list_of(_retry)) or (),
            unknown_sums=unknown,
        )
        if version > 1:
            found.take("manifest_sha256", _checksum)
            for name in (SPEC, PLAN):
                if manifest.file(name) is None:
                    raise ValueError(f"files lacks {name}")
        found.end()
        _check_once("parts", [str(entry.name) for entry in manifest.objects])
        _check_once("files", [file.name for file in manifest.files])
        if version > 1 and not edited_too and not is_as_written(data):
            raise ValueError("it was changed after it was written: manifest_sha256 does not fit")
        return manifest


def is_as_written(data: bytes) -> bool:
    """Whether a manifest that ends with its own checksum is byte for byte what was written."""
    body = data.rpartition(_OWN_CHECKSUM)[0]
    return data == body + _own_checksum(body)


def _own_checksum(body: bytes) -> bytes:
    """What follows everything else in a manifest."""
    return _OWN_CHECKSUM + f'"{sha256(body).hexdigest()}"\n}}'.encode()


# Reading. Each reader takes a value of JSON and the path of its field.
class _Fields:
    """The fields of one JSON object, each taken once."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'it'} is {_shown(value)}, not an object")
        self._left, self._path = dict(value), f"{path}." if path else ""

    def take(self, name: str, read: Callable[[Any, str], T]) -> T:
        """A field that must be there."""
        if name not in self._left:
            raise ValueError(f"{self._path}{name} is missing")
        return read(self._left.pop(name), f"{self._path}{name}")

    def may_have(self, name: str, read: Callable[[Any, str], T]) -> T | None:
        """A field that may be missing."""
        return self.take(name, read) if name in self._left else None

    def end(self) -> None:
        """Refuse fields that nobody has taken."""
        for name in self._left:
            raise ValueError(f"{self._path}{_shown(name)[1:-1]} is no field of a manifest")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{path} is {_shown(value)}, not text")
    return value


def _whole(value: Any, path: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{path} is {_shown(value)}, not a whole number from 0")
    return value


def _checksum(value: Any, path: str) -> str:
    if not isinstance(value, str) or not _SHA256.match(value):
        raise ValueError(f"{path} is {_shown(value)}, not a SHA-256 in hex")
    return value


def _counts(value: Any, path: str) -> dict[str, int]:
    found = _Fields(value, path)
    return {name: found.take(name, _whole) for name in value}


def _list_of(read: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    return lambda value, path: tuple(read(one, f"{path}[{at}]") for at, one in enumerate(_items(value, path)))


def _items(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{path} is {_shown(value)}, not a list")
    return value


def _entries(value: Any, path: str) -> tuple[Entry, ...]:
    """As `_list_of(_entry)`. There may be a million: what is wrong with one is looked for only if something is."""
    return tuple(_right_entry(one) or _entry(one, f"{path}[{at}]") for at, one in enumerate(_items(value, path)))


def _right_entry(value: Any) -> Entry | None:
    """An entry; None if anything about it is wrong."""
    if type(value) is not dict or len(value) != len(_ENTRY_FIELDS):
        return None
    name, rows, records, size, checksum = (value.get(field) for field in _ENTRY_FIELDS)
    if not (type(name) is type(checksum) is str and type(rows) is type(records) is type(size) is int):
        return None
    part = ObjectName.parse(name) if min(rows, records, size) >= 0 and _SHA256.match(checksum) else None
    return None if part is None else Entry(part, rows, records, size, checksum)


def _entry(value: Any, path: str) -> Entry:
    found = _Fields(value, path)
    text = found.take("name", _text)
    name = ObjectName.parse(text)
    if name is None:
        raise ValueError(f"{path}.name is {_shown(text)}, not the name of an object")
    rows, records, size = (found.take(one, _whole) for one in ("rows", "records", "bytes"))
    entry = Entry(name, rows, records, size, found.take("sha256", _checksum))
    found.end()
    return entry


def _file(value: Any, path: str) -> StoredFile:
    found = _Fields(value, path)
    file = StoredFile(found.take("name", _text), found.take("bytes", _whole), found.take("sha256", _checksum))
    if file.name not in NAMED_FILES:
        raise ValueError(f"{path}.name is {_shown(file.name)}, not one of {', '.join(NAMED_FILES)}")
    found.end()
    return file


def _retry(value: Any, path: str) -> RetryRecord:
    found = _Fields(value, path)
    finished_at, dropped = found.take("finished_at", _text), found.may_have("dropped", lambda value, _: value)
    if dropped is not None:
        if dropped is not True:
            raise ValueError(f"{path}.dropped is {_shown(dropped)}, not true")
        record = RetryRecord(finished_at, dropped=True)
    else:
        chosen, items = found.take("chosen", _text), found.take("set", _list_of(_text))
        record = RetryRecord(
            finished_at, False, chosen, items, found.take("rows", _whole), found.take("answered", _whole)
        )
    found.end()
    return record


def _sums(found: _Fields, needed: frozenset[str]) -> tuple[Totals, frozenset[str]]:
    """The sums, and the names of those that an older version did not keep; `needed` must be there."""
    values: dict[str, Any] = {}
    for name in _SUMS:
        read: Callable[[Any, str], Any] = _whole if name in _COUNTS else _counts
        value = found.take(name, read) if name in needed else found.may_have(name, read)
        if value is not None:
            values[name] = value
    return Totals(**values), frozenset(_SUMS) - values.keys()


def _check_once(field: str, names: list[str]) -> None:
    seen = set[str]()
    for position, name in enumerate(names):
        if name in seen:
            raise ValueError(f"{field}[{position}].name: {name} is named twice")
        seen.add(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{_shown(twice)[1:-1]} is there twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")


def _shown(value: Any) -> str:
    """A value for people: short, and harmless to a terminal."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
