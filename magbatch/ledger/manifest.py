"""The manifest makes a job complete: it names every object that counts and the sums over them.

A manifest is read strictly. A field that is missing, unknown or of another type is an error that names the field. Its
last field is the checksum of everything before it, so a changed byte is an error too. That checksum is the only guard
of `finished_at`, `compacted_to_bytes` and the contents of `retries`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any, Self

from magbatch.errors import OutputError
from magbatch.ledger.layout import MANIFEST, NAMED_FILES, PLAN, SPEC
from magbatch.ledger.strict_json import (
    SHA256,
    Fields,
    list_of,
    parse,
    read_checksum,
    read_counts,
    read_items,
    read_text,
    read_whole,
    shown,
)
from magbatch.schema import ObjectName
from magbatch.totals import Totals

# Version 1 has no checksums of the job's own files and of the manifest itself; version 2 has them.
VERSION = 2
_OWN_CHECKSUM = b',\n "manifest_sha256": '
_ENTRY_FIELDS = ("name", "rows", "records", "bytes", "sha256")
_SUMS = tuple(field.name for field in fields(Totals))
_COUNTS = tuple(field.name for field in fields(Totals) if not field.name.startswith("by_"))
_NEEDED_SUMS = frozenset({"answered", "failed", "by_code", "by_status"})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the job itself as a manifest names it.

    Attributes:
        name: Path below the output.
        size: Size (bytes).
        sha256: SHA-256 of the content, hex.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> Self:
        """Make the entry of a file from its content."""
        return cls(name, len(data), sha256(data).hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """The record as the manifest holds it."""
        return {"name": self.name, "bytes": self.size, "sha256": self.sha256}

    def fits(self, data: bytes | None) -> bool:
        """Whether a content has the file's size and checksum."""
        return data is not None and self == StoredFile.of(self.name, data)


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed object as a manifest names it.

    Attributes:
        name: Name, which gives kind, shards, attempt and rows.
        rows: Number of input rows.
        records: Number of records; n for each row of a job with n samples.
        bytes: Size (bytes).
        sha256: SHA-256 of the content, hex.
    """

    name: ObjectName
    rows: int
    records: int
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The record as the manifest holds it."""
        return {
            "name": str(self.name), "rows": self.rows, "records": self.records, "bytes": self.bytes,
            "sha256": self.sha256,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """A retry as the manifest records it.

    Attributes:
        finished_at: Time of its end, ISO 8601.
        dropped: Whether the retry was given up; the fields below are then empty.
        chosen: Description of the chosen rows, in words.
        set: Settings that were changed for the retry, each as `key.path=value`.
        rows: Number of rows that were asked again.
        answered: Number of rows with a new answer.
    """

    finished_at: str
    dropped: bool = False
    chosen: str = ""
    set: tuple[str, ...] = ()
    rows: int = 0
    answered: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as the manifest holds it."""
        if self.dropped:
            return {"dropped": True, "finished_at": self.finished_at}
        return {
            "chosen": self.chosen, "set": list(self.set), "rows": self.rows, "answered": self.answered,
            "finished_at": self.finished_at,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        schema_version: Version of the output contract, the objects' columns.
        job: Name of the job, from its spec.
        finished_at: Time of the job's end, ISO 8601.
        planned_rows: Input rows of the plan.
        plan_sha256: SHA-256 of the stored plan, hex.
        totals: Sums over the objects.
        objects: Objects that count, each once.
        files: The job's own files; none in version 1.
        model_revision: Version of the model's files, if the plan froze one.
        graded_by: Number of the rule that counted right answers; None if an older version counted them.
        compacted_to_bytes: Target size of the last compaction (bytes); None if there was none.
        retries: Retries of the job, oldest first.
        unknown_sums: Names of totals that an older version did not write.
        version: Version of the manifest's format.
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
        """Entry of a file of the job itself; None if the manifest does not name it."""
        return next((file for file in self.files if file.name == name), None)

    def vouches_for(self, name: str, data: bytes | None) -> bool:
        """Whether a content is that of one of the job's own files, or the manifest has no checksum of that file."""
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
        """Parse a manifest of this version or of version 1.

        Args:
            data: Content of the manifest.
            where: Path of the manifest, for errors.
            edited_too: Accept a manifest whose own checksum does not fit.

        Raises:
            OutputError: The content is not a manifest; the message names the first wrong field.
        """
        try:
            return cls._parsed(data, edited_too=edited_too)
        except RecursionError:
            wrong = "it is nested too deeply"
        except ValueError as error:
            wrong = str(error)
        raise OutputError(
            f"{where} is damaged: {wrong}; restore it from a backup, or delete it and run the spec again to rebuild it "
            "from the objects"
        )

    @classmethod
    def _parsed(cls, data: bytes, *, edited_too: bool) -> Self:
        text = data.decode()
        found = Fields(parse(text), "")
        version = found.take("version", read_whole)
        if version not in (1, VERSION):
            raise ValueError(f"version is {shown(version)}; this version of magbatch knows 1 and {VERSION}")
        sums, unknown = _sums(found, _NEEDED_SUMS if version == 1 else frozenset(_SUMS))
        manifest = cls(
            version=version,
            schema_version=found.take("schema_version", read_text),
            job=found.take("job", read_text),
            finished_at=found.take("finished_at", read_text),
            planned_rows=found.take("planned_rows", read_whole),
            plan_sha256=found.take("plan_sha256", read_checksum),
            totals=sums,
            objects=found.take("parts", _entries),
            files=found.take("files", list_of(_file)) if version > 1 else (),
            model_revision=found.may_have("model_revision", read_text),
            graded_by=found.may_have("graded_by", read_whole) if version == 1 else found.take("graded_by", read_whole),
            compacted_to_bytes=found.may_have("compacted_to_bytes", read_whole),
            retries=found.may_have("retries", list_of(_retry)) or (),
            unknown_sums=unknown,
        )
        if version > 1:
            found.take("manifest_sha256", read_checksum)
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
    """Whether a manifest of version 2 is byte for byte as it was written."""
    body = data.rpartition(_OWN_CHECKSUM)[0]
    return data == body + _own_checksum(body)


def _own_checksum(body: bytes) -> bytes:
    """The last field of a manifest: the checksum of everything before it."""
    return _OWN_CHECKSUM + f'"{sha256(body).hexdigest()}"\n}}'.encode()


def _entries(value: Any, path: str) -> tuple[Entry, ...]:
    """Read the entries of objects.

    A manifest may have a million: the slow reader, which finds the fault, runs only for a wrong entry.
    """
    return tuple(
        _right_entry(item) or _entry(item, f"{path}[{index}]") for index, item in enumerate(read_items(value, path))
    )


def _right_entry(value: Any) -> Entry | None:
    """Read an entry quickly; None if anything about it is wrong."""
    if type(value) is not dict or len(value) != len(_ENTRY_FIELDS):
        return None
    name, rows, records, size, checksum = (value.get(field) for field in _ENTRY_FIELDS)
    if not (type(name) is type(checksum) is str and type(rows) is type(records) is type(size) is int):
        return None
    parsed = ObjectName.parse(name) if min(rows, records, size) >= 0 and SHA256.match(checksum) else None
    return None if parsed is None else Entry(parsed, rows, records, size, checksum)


def _entry(value: Any, path: str) -> Entry:
    found = Fields(value, path)
    text = found.take("name", read_text)
    name = ObjectName.parse(text)
    if name is None:
        raise ValueError(f"{path}.name is {shown(text)}, not the name of an object")
    rows, records, size = (found.take(field, read_whole) for field in ("rows", "records", "bytes"))
    entry = Entry(name, rows, records, size, found.take("sha256", read_checksum))
    found.end()
    return entry


def _file(value: Any, path: str) -> StoredFile:
    found = Fields(value, path)
    file = StoredFile(
        found.take("name", read_text), found.take("bytes", read_whole), found.take("sha256", read_checksum)
    )
    if file.name not in NAMED_FILES:
        raise ValueError(f"{path}.name is {shown(file.name)}, not one of {', '.join(NAMED_FILES)}")
    found.end()
    return file


def _retry(value: Any, path: str) -> RetryRecord:
    found = Fields(value, path)
    finished_at, dropped = found.take("finished_at", read_text), found.may_have("dropped", lambda value, _: value)
    if dropped is not None:
        if dropped is not True:
            raise ValueError(f"{path}.dropped is {shown(dropped)}, not true")
        record = RetryRecord(finished_at, dropped=True)
    else:
        chosen, items = found.take("chosen", read_text), found.take("set", list_of(read_text))
        record = RetryRecord(
            finished_at, False, chosen, items, found.take("rows", read_whole), found.take("answered", read_whole)
        )
    found.end()
    return record


def _sums(found: Fields, needed: frozenset[str]) -> tuple[Totals, frozenset[str]]:
    """Read the totals.

    Args:
        found: Fields of the manifest.
        needed: Names of totals that must be there.

    Returns:
        The totals; names of totals that are missing because an older version did not write them.
    """
    values: dict[str, Any] = {}
    for name in _SUMS:
        read: Callable[[Any, str], Any] = read_whole if name in _COUNTS else read_counts
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
