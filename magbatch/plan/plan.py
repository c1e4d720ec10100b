"""Input files -> shards and stable row ids, from Parquet metadata.

A plan freezes the input: files that appear later shift nothing, and a row's id depends on its
file's path below the input and its position in the file, on nothing else. Of the rows, at most the
column is read by which they are grouped.
"""

import base64
import io
import os
import secrets
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.errors import ErrorCode, InputError, OutputError
from magbatch.ledger.layout import PLAN
from magbatch.model.checkpoint import resolve
from magbatch.plan.column_kinds import check_kinds
from magbatch.plan.columns import (
    check_expected,
    check_known,
    check_max_tokens,
    check_names,
    common_types,
    input_columns,
    mixed_note,
    renamed_note,
    with_output_names,
    with_texts,
)
from magbatch.plan.grouping import GroupedFile, GroupingResult, arrange, lead_of
from magbatch.plan.inputs import PlannedFile, bad_files_error, read_footers
from magbatch.plan.windows import Arranged, Integers
from magbatch.rows import Segment, Shard
from magbatch.spec import AUTO, NONE, JobSpec
from magbatch.spec.sections import MIN_SHARD_ROWS
from magbatch.storage import ObjectInfo, Store
from magbatch.storage.columns import written_name
from magbatch.storage.search import check_apart, find_input
from magbatch.storage.sizes import SHARD_BYTES

FOOTER_BYTES = 1 << 16  # of a stored plan that are read first
MAX_DOCUMENT_SHARD_ROWS = 8  # of at most limits.max_images pages each
MAX_LONG_DOCUMENT_SHARD_ROWS = 2  # of at most limits.max_pages each: a gigabyte where all are large
MAX_IMAGE_SHARD_ROWS = 32  # a shard is one block in Ray's object store; a decoded page is 7 MB
MAX_SEGMENT_ROWS = 10_000_000  # more than any version has put in a shard; each has an id in memory
_COLUMNS = pa.schema(
    [
        ("shard", pa.int32()),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("key", pa.dictionary(pa.int32(), pa.string())),
        ("size", pa.int64()),
        ("tag", pa.string()),
        ("start", pa.int64()),
        ("rows", pa.int64()),
        ("problem", pa.string()),
        ("code", pa.string()),
        ("digest", pa.dictionary(pa.int32(), pa.string())),
    ]
)
# Of a plan whose rows are grouped: where a record's rows are, from `start` on, where they do not follow each other.
_POSITIONS = pa.field("positions", pa.list_(pa.int32()))
_ID = "magbatch.plan_id"  # among the metadata of the stored plan


@dataclass(frozen=True)
class Plan:
    """The frozen input of a job.

    Attributes:
        table: One record for each segment, in the order of the shards; or, where rows are grouped, for the rows of
            one file that a shard has side by side.
        columns: The input columns that the job reads, with the types all files are brought to.
        offsets: Position in `table` at which each shard begins, and the end.
        group: The column by which rows are grouped; None where they keep the order of their files.
        distinct: What prompts begin with was looked at, and hardly two rows begin with the same; not known of a sample.
        revision: Version of the model's files; None in plans of older versions.
        id: Identity of the plan: hex digits, new for each job that begins; None before that, and of older versions.
        notes: What was found when the plan was made, for people; they are not stored.
    """

    table: pa.Table
    columns: pa.Schema
    offsets: list[int]
    group: str | None = None
    distinct: bool = False
    revision: str | None = None
    id: str | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        table: pa.Table,
        columns: pa.Schema,
        *,
        group: str | None = None,
        distinct: bool = False,
        revision: str | None = None,
        notes: Iterable[str] = (),
    ) -> "Plan":
        """A plan over its segments."""
        shards = table.column("shard").to_numpy()
        starts = [0, *(int(index) + 1 for index in (shards[1:] != shards[:-1]).nonzero()[0])] if len(shards) else []
        return cls(table, columns, [*starts, len(shards)], group, distinct, revision, notes=tuple(notes))

    def begun(self) -> "Plan":
        """The plan of a job that begins now: what is written for another, in the same place, is not this job's."""
        return replace(self, id=secrets.token_hex(6))

    def pinned(self, spec: JobSpec) -> JobSpec:
        """The job with the version of its model that the plan froze."""
        if self.revision is None:
            return spec
        return spec.model_copy(update={"model": spec.model.model_copy(update={"revision": self.revision})})

    def output_name(self, column: str | None) -> str | None:
        """The name in the output of a carried input column; None of none."""
        return None if column is None else written_name(self.columns.field(column))

    @property
    def num_shards(self) -> int:
        """Shards of the job."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        """Input rows of the job; a file that cannot be read counts as one."""
        return int(pa.compute.sum(self.table.column("rows")).as_py() or 0)

    @property
    def shard_sizes(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Rows of each shard."""
        rows = self.table.column("rows").to_numpy()
        return np.add.reduceat(rows, self.offsets[:-1]) if self.num_shards else np.zeros(0, dtype=np.int64)

    def shard(self, index: int) -> Shard:
        """One shard."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        records = self.table.slice(begin, end - begin).to_pylist()
        return Shard(index, tuple(segment for record in records for segment in _segments(record)))

    def shards(self) -> Iterator[Shard]:
        """All shards, in order."""
        return (self.shard(index) for index in range(self.num_shards))

    def bad_files(self) -> list[tuple[str, str]]:
        """Path and problem of each file that cannot be read."""
        bad = self.table.filter(pa.compute.is_valid(self.table.column("problem")))
        return list(zip(bad.column("path").to_pylist(), bad.column("problem").to_pylist(), strict=True))

    def files(self) -> set[tuple[str, int, str]]:
        """Path, size (bytes) and tag of each input file, the bad ones too."""
        names = self.table.select(["path", "size", "tag"]).group_by(["path", "size", "tag"]).aggregate([])
        return {(row["path"], row["size"], row["tag"]) for row in names.to_pylist()}

    def num_files(self) -> int:
        """Input files of the job."""
        return len(self.table.column("path").unique())

    def row_ids(self) -> Iterator[str]:
        """All rows, in order."""
        return (row_id for shard in self.shards() for row_id in shard.row_ids())

    def shards_of(self, row_ids: Iterable[str]) -> dict[str, int]:
        """The shard of each row, in the order of the plan; rows that are whole files or not planned are left out."""
        return {row_id: shard for shard, segment in self._chosen(row_ids) for row_id in segment.row_ids()}

    def subset(self, row_ids: Iterable[str], spec: JobSpec) -> "Plan":
        """The plan of a job that asks only these rows, by the same ids; files that cannot be read stay behind."""
        segments = [segment for _, segment in self._chosen(row_ids)]
        return replace(_planned(segments, spec, self.columns, distinct=self.distinct), revision=self.revision)

    def _chosen(self, row_ids: Iterable[str]) -> Iterator[tuple[int, Segment]]:
        """Consecutive rows and their shard, in the order of the plan."""
        wanted: dict[str, list[int]] = {}
        for row_id in row_ids:
            key, _, position = row_id.rpartition("-")
            if key:  # a file that cannot be read is one row, by the key alone
                wanted.setdefault(key, []).append(int(position))
        for positions in wanted.values():
            positions.sort()
        records = (record for batch in self.table.to_batches(max_chunksize=4096) for record in batch.to_pylist())
        for record in records:
            positions = wanted.get(record["key"], [])
            for segment in _segments(record) if positions else ():
                at = bisect_left(positions, segment.start)
                end = bisect_left(positions, segment.start + segment.rows)
                while at < end:
                    start = positions[at]
                    rows = next((n for n in range(1, end - at) if positions[at + n] != start + n), end - at)
                    yield record["shard"], replace(segment, start=start, rows=rows)
                    at += rows

    def to_bytes(self) -> bytes:
        """The plan as it lies beside the output: a Parquet file."""
        metadata = {"magbatch.columns": base64.b64encode(self.columns.serialize().to_pybytes()).decode()}
        if self.group is not None:
            metadata["magbatch.group"] = base64.b64encode(self.group.encode()).decode()
        if self.distinct:
            metadata["magbatch.distinct"] = ""
        if self.revision is not None:
            metadata["magbatch.revision"] = self.revision
        if self.id is not None:
            metadata[_ID] = self.id
        sink = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata(metadata), sink, compression="zstd")
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        """Read back what `to_bytes` wrote.

        Raises:
            OutputError: It is not a plan.
        """
        try:
            table = pq.read_table(io.BytesIO(data))
            metadata = table.schema.metadata or {}
            columns = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(metadata[b"magbatch.columns"])))
            group, distinct = metadata.get(b"magbatch.group"), b"magbatch.distinct" in metadata
            if "digest" not in table.column_names:  # an older plan
                nothing = pa.nulls(table.num_rows, _COLUMNS.field("digest").type)
                table = table.add_column(_COLUMNS.get_field_index("digest"), "digest", nothing)
            revision = metadata[b"magbatch.revision"].decode() if b"magbatch.revision" in metadata else None
            table = table.cast(_COLUMNS if group is None else _COLUMNS.append(_POSITIONS))
            _check_values(table)
            by = None if group is None else base64.b64decode(group).decode()
            plan = cls.of(table, columns, group=by, distinct=distinct and group is None, revision=revision)
            return replace(plan, id=metadata[_ID.encode()].decode() if _ID.encode() in metadata else None)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise OutputError(f"_magbatch/plan.parquet is damaged: {error}") from error


def read_plan_id(store: Store) -> str | None:
    """Id of the stored plan, by its footer alone where that is short; None where there is none, or it is damaged."""
    with suppress(pa.ArrowException, ValueError, OSError):
        try:
            found = pq.read_metadata(io.BytesIO(store.read_end(PLAN, FOOTER_BYTES))).metadata
        except (pa.ArrowException, ValueError):  # the footer is longer than what was read of it
            found = pq.read_metadata(io.BytesIO(store.read(PLAN))).metadata
        return found[_ID.encode()].decode() if _ID.encode() in (found or {}) else None
    return None


def _check_values(table: pa.Table) -> None:
    """Refuse what no plan holds, before somebody counts with it."""
    for name in ("shard", "path", "key", "size", "tag", "start", "rows"):
        column = table.column(name)
        if column.null_count:
            raise ValueError(f"its column {name} has {column.null_count:,} nulls")
        if pa.types.is_integer(column.type) and table.num_rows and pa.compute.min(column).as_py() < 0:
            raise ValueError(f"its column {name} has a number below 0")
    if table.num_rows and pa.compute.max(table.column("rows")).as_py() > MAX_SEGMENT_ROWS:
        raise ValueError(f"its column rows has a number above {MAX_SEGMENT_ROWS:,}")
    unknown = set(table.column("code").unique().to_pylist()) - {None, *ErrorCode}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is no error code")


def _segments(record: dict[str, Any]) -> list[Segment]:
    values = {name: value for name, value in record.items() if name not in ("shard", "positions")}
    values["code"] = ErrorCode(str(values["code"])) if values["code"] else None
    whole = Segment(**values)
    positions = record.get("positions")
    if positions is None:
        return [whole]
    begins = [0, *(at for at in range(1, len(positions)) if positions[at] != positions[at - 1] + 1), len(positions)]
    return [replace(whole, start=whole.start + positions[begin], rows=end - begin) for begin, end in pairwise(begins)]


def make_plan(spec: JobSpec, limit: int | None = None, take: Callable[[ObjectInfo], bool] | None = None) -> Plan:
    """Plan a job.

    Args:
        spec: The job.
        limit: Take only this many rows, spread evenly over the input.
        take: Says which files are the job's. These are a part of the input, so there may be none, and under
            `on_bad_file: dead_letter` all of them may be bad; without it, that is a mistake in the spec.

    Raises:
        InputError: Nothing is there, a file is bad under `on_bad_file: fail`, or no file is good.
        SpecError: A column that the spec names is in none of the files, or input and output are not apart.
        ModelError: The model's files cannot be had.
        StorageError: The input cannot be listed.
    """
    check_apart(spec.input.path, spec.output.path)
    check_names(spec)
    return replace(_plan_of_rows(spec, limit, take), revision=resolve(spec.model))


def _plan_of_rows(spec: JobSpec, limit: int | None, take: Callable[[ObjectInfo], bool] | None) -> Plan:
    names, lead = input_columns(spec), lead_of(spec) if limit is None else None
    root = _root(spec.input.path)
    given = find_input(spec.input.path, may_be_none=take is not None)
    infos = [info for info in given.files if take is None or take(info)]
    unnamed = [info.name for info in infos if any("\ud800" <= char <= "\udfff" for char in info.name)]
    if unnamed:
        raise InputError(f"input.path {spec.input.path}: a file's name is no valid text: {unnamed[0]!r}; rename it")
    files = [PlannedFile(info, sha256(os.fsencode(_below(root, info.name))).hexdigest()[:12]) for info in infos]
    keys = {file.key for file in files}  # a hash of 48 bits: two files of one input never share it in practice
    if len(keys) < len(files):
        raise InputError(f"input.path {spec.input.path}: it yields the same file twice")
    group = [] if spec.input.group in (AUTO, NONE) else [spec.input.group]
    read_footers(files, names, group, lead)
    all_may_be_bad = take is not None and spec.input.on_bad_file == "dead_letter"
    if not all_may_be_bad:
        check_known(spec, files, [*names, *group])
    columns = with_texts(spec, common_types(files, names))
    check_expected(columns, spec.input.columns.expected)
    check_kinds(spec, columns)
    check_max_tokens(columns, spec.input.columns.max_tokens)
    columns = with_output_names(spec, columns)
    notes = [*renamed_note(columns), *mixed_note(files, columns), *given.notes]
    bad = [file for file in files if file.problem is not None]
    if bad and (spec.input.on_bad_file == "fail" or len(bad) == len(files)) and not all_may_be_bad:
        raise bad_files_error(spec.input.path, files)

    if limit is not None:
        return _planned(_sample(files, limit), spec, columns, notes=notes, row_bytes=_row_bytes(files))
    segments, found = _everything(files), GroupingResult()
    if lead is not None:
        footers = {file.info.name: file.facts.lead for file in files if file.facts and file.problem is None}
        sources = [GroupedFile(segment, footers.get(segment.path)) for segment in segments]
        found = arrange(lead, sources, *_shard_rows(segments, spec, columns))
        notes += _group_notes(found, files, group)
        if found.arranged is not None:
            return Plan.of(_grouped(found.arranged, segments), columns, group=lead.column, notes=notes)
    return _planned(segments, spec, columns, distinct=found.distinct, notes=notes, row_bytes=_row_bytes(files))


def _group_notes(found: GroupingResult, files: list[PlannedFile], group: list[str]) -> list[str]:
    if group and all(group[0] in file.keys for file in files if file.rows):
        return [f"input.group: {group[0]!r} stands in the paths: the rows of a file share it already"]
    return [found.note] if found.note else []


def _shard_rows(segments: list[Segment], spec: JobSpec, columns: pa.Schema) -> tuple[int, int]:
    """Rows in a shard; and how many one may have so that a group stays whole."""
    total = sum(segment.rows for segment in segments)
    rows, most = spec.shard_rows(total), spec.group_rows(total)
    if spec.input.shard_rows is not None:
        return rows, most
    bounds = [MAX_IMAGE_SHARD_ROWS] if spec.input.columns.images else []
    if _has_pictures(spec, columns):
        long = spec.input.document.overflow == "map_reduce"
        bounds.append(MAX_LONG_DOCUMENT_SHARD_ROWS if long else MAX_DOCUMENT_SHARD_ROWS)
    return min([rows, *bounds]), min([most, *bounds])


def _planned(
    segments: list[Segment],
    spec: JobSpec,
    columns: pa.Schema,
    *,
    distinct: bool = False,
    notes: Iterable[str] = (),
    row_bytes: dict[str, int] | None = None,
) -> Plan:
    shard_rows, _ = _shard_rows(segments, spec, columns)
    rooms = {} if spec.input.shard_rows is not None else _rooms(row_bytes or {}, shard_rows)
    # Millions, of a large job:
    runs = array("q", (number for run in _pack(segments, shard_rows, rooms) for number in run))
    shard, source, start, rows = np.asarray(runs).reshape(-1, 4).T
    return Plan.of(_records(segments, shard, source, start, rows), columns, distinct=distinct, notes=notes)


def _grouped(arranged: Arranged, segments: list[Segment]) -> pa.Table:
    """The records of shards that hold rows side by side which stand apart in their files."""
    table = _records(segments, arranged.shard, arranged.source, arranged.start, arranged.rows)
    return table.append_column(_POSITIONS, arranged.positions)


def _records(segments: list[Segment], shard: Integers, source: Integers, start: Integers, rows: Integers) -> pa.Table:
    """One record for each run of rows.

    Args:
        segments: The files.
        shard: Of each run.
        source: Its file, by its number.
        start: Its first row in the file.
        rows: How many.
    """
    made, files = {"shard": shard, "start": start, "rows": rows}, pa.array(source, pa.int32())

    def of_file(name: str) -> pa.Array:
        return pa.array([getattr(segment, name) for segment in segments], _COLUMNS.field(name).type).take(files)

    arrays = [
        pa.array(made[name], _COLUMNS.field(name).type) if name in made else of_file(name) for name in _COLUMNS.names
    ]
    return pa.Table.from_arrays(arrays, schema=_COLUMNS)


def _has_pictures(spec: JobSpec, columns: pa.Schema) -> bool:
    """Whether the rows' documents may have pictures: text is small."""
    name, how = spec.input.columns.document, spec.input.document
    if name is None or how.mode == "text":
        return False
    kind = columns.field(name).type
    return not (how.strings == "text" and (pa.types.is_string(kind) or pa.types.is_large_string(kind)))


def _root(path: str) -> str:
    """What row ids do not depend on: the directory of the input, up to a glob's first wildcard."""
    fixed = path
    for wildcard in "*?[":
        fixed = fixed.partition(wildcard)[0]
    if fixed == path and not path.endswith(".parquet"):
        return path.rstrip("/") + "/"
    return fixed.rpartition("/")[0] + "/"


def _below(root: str, name: str) -> str:
    return name[len(root) :] if name.startswith(root) else os.path.basename(name)


def _everything(files: list[PlannedFile]) -> list[Segment]:
    return [
        file.segment(0, file.rows if file.problem is None else 1)
        for file in files
        if file.rows or file.problem is not None
    ]


def _sample(files: list[PlannedFile], limit: int) -> list[Segment]:
    """`limit` rows, spread evenly over all readable ones: row floor(i * total / limit) for each i."""
    good = [file for file in files if file.problem is None]
    total = sum(file.rows for file in good)
    wanted = min(limit, total)
    segments: list[Segment] = []
    index, first = 0, 0
    for number in range(wanted):
        row = number * total // wanted
        while row >= first + good[index].rows:
            first += good[index].rows
            index += 1
        file, start = good[index], row - first
        last = segments[-1] if segments else None
        if last is not None and last.key == file.key and last.start + last.rows == start:
            segments[-1] = replace(last, rows=last.rows + 1)
        else:
            segments.append(file.segment(start, 1))
    return segments


def _row_bytes(files: list[PlannedFile]) -> dict[str, int]:
    """Bytes of a row of each file, as its footer says."""
    return {file.info.name: file.facts.row_bytes for file in files if file.facts is not None}


def _rooms(row_bytes: dict[str, int], shard_rows: int) -> dict[str, int]:
    """How much of a shard's room, in rows, a row of a file takes; files whose rows take 1 are left out."""
    most = max(1, shard_rows // MIN_SHARD_ROWS)  # also of a file whose footer exaggerates
    rooms = {path: min(most, held * shard_rows // SHARD_BYTES) for path, held in row_bytes.items()}
    return {path: room for path, room in rooms.items() if room > 1}


def _pack(segments: list[Segment], shard_rows: int, rooms: dict[str, int]) -> Iterator[tuple[int, int, int, int]]:
    """Cut and join segments into shards of `shard_rows`, fewer of large rows; small files share one.

    Returns:
        Shard, number of the segment, first row in its file and rows of each run.
    """
    shard, room = 0, shard_rows
    for number, segment in enumerate(segments):
        start, left, each = segment.start, segment.rows, rooms.get(segment.path, 1)
        while left:
            if room < each:
                shard, room = shard + 1, shard_rows
            rows = min(room // each, left)
            yield shard, number, start, rows
            start, left, room = start + rows, left - rows, room - rows * each
