"""The plan: shards of input rows with stable ids, as a value that is stored as Parquet.

A plan freezes the input: files that appear later change nothing. A row's id depends only on its file's path below the
input and on its position in the file.
"""

import base64
import io
import json
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.errors import ErrorCode, OutputError
from magbatch.rows import Segment, Shard
from magbatch.spec import JobSpec
from magbatch.storage.columns import written_name

if TYPE_CHECKING:
    from magbatch.model.checkpoint import Checkpoint  # the hub's client, which `status` does not need

MAX_SEGMENT_ROWS = 10_000_000  # more than any version puts in a shard; bounds the ids in memory for a damaged plan
COLUMNS = pa.schema(
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
# Column of a plan with groups: offset of each row from `start`; null if the record's rows follow each other.
POSITIONS = pa.field("positions", pa.list_(pa.int32()))
_HINTS = "magbatch.engine_hints"
PLAN_ID_KEY = "magbatch.plan_id"  # key in the metadata of the stored plan


@dataclass(frozen=True)
class Plan:
    """The frozen input of a job.

    Attributes:
        table: Records in the order of the shards, with the columns COLUMNS. A record is a run of rows of one file in
            one shard. If rows are grouped, it has the column POSITIONS too.
        columns: Input columns that the job reads, with the types that all files are converted to.
        offsets: Index in `table` of each shard's first record, and the length of `table`.
        group: Column by which rows are grouped; None if they keep the order of their files.
        engine_hints: Engine arguments that suit this input, by vLLM's names; the spec's own arguments override them.
        revision: Version of the model's files; None in plans of older versions.
        id: Random id, hex, new for each job that starts; None before that, and in plans of older versions.
        notes: Remarks for a person; not stored.
        checkpoint: The model's files, as the planner found them; not stored, so None in a plan that was read.
    """

    table: pa.Table
    columns: pa.Schema
    offsets: list[int]
    group: str | None = None
    engine_hints: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    id: str | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    checkpoint: "Checkpoint | None" = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        table: pa.Table,
        columns: pa.Schema,
        *,
        group: str | None = None,
        engine_hints: dict[str, Any] | None = None,
        revision: str | None = None,
        notes: Iterable[str] = (),
    ) -> "Plan":
        """Make a plan from its records.

        Args:
            table: Records in the order of the shards.
            columns: Input columns that the job reads, with their types.
            group: Column by which rows are grouped, if any.
            engine_hints: Engine arguments that suit this input.
            revision: Version of the model's files, if it is frozen yet.
            notes: Remarks for a person.
        """
        shards = table.column("shard").to_numpy()
        starts = [0, *(int(index) + 1 for index in (shards[1:] != shards[:-1]).nonzero()[0])] if len(shards) else []
        return cls(table, columns, [*starts, len(shards)], group, engine_hints or {}, revision, notes=tuple(notes))

    def begun(self) -> "Plan":
        """The plan with a new id, for a job that starts now.

        The id tells this job's objects from those of an earlier job in the same output.
        """
        return replace(self, id=secrets.token_hex(6))

    def pinned(self, spec: JobSpec) -> JobSpec:
        """The job with the model revision that the plan froze."""
        if self.revision is None:
            return spec
        return spec.model_copy(update={"model": spec.model.model_copy(update={"revision": self.revision})})

    def output_name(self, column: str | None) -> str | None:
        """Name in the output of a carried input column; None for None."""
        return None if column is None else written_name(self.columns.field(column))

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        """Number of input rows; a file that cannot be read counts as one row."""
        return int(pa.compute.sum(self.table.column("rows")).as_py() or 0)

    @property
    def shard_sizes(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """int64 array (shards,): number of rows in each shard."""
        rows = self.table.column("rows").to_numpy()
        return np.add.reduceat(rows, self.offsets[:-1]) if self.num_shards else np.zeros(0, dtype=np.int64)

    def shard(self, index: int) -> Shard:
        """The shard with an index."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        records = self.table.slice(begin, end - begin).to_pylist()
        return Shard(index, tuple(segment for record in records for segment in _segments(record)))

    def shards(self) -> Iterator[Shard]:
        """All shards, in order."""
        return (self.shard(index) for index in range(self.num_shards))

    def bad_files(self) -> list[tuple[str, str]]:
        """Path and problem of each file that cannot be read."""
        bad = self.table.filter(pa.compute.is_valid(self.table.column("problem")))
        return [(row["path"], row["problem"]) for row in bad.select(["path", "problem"]).to_pylist()]

    def files(self) -> set[tuple[str, int, str]]:
        """Path, size (bytes) and tag of each input file, bad files included."""
        names = self.table.select(["path", "size", "tag"]).group_by(["path", "size", "tag"]).aggregate([])
        return {(row["path"], row["size"], row["tag"]) for row in names.to_pylist()}

    def num_files(self) -> int:
        """Number of input files."""
        return len(self.table.column("path").unique())

    def row_ids(self) -> Iterator[str]:
        """Ids of all rows, in order."""
        return (row_id for shard in self.shards() for row_id in shard.row_ids())

    def shards_of(self, row_ids: Iterable[str]) -> dict[str, int]:
        """Shard number of each row, in the order of the plan.

        Rows that are not planned, and rows that stand for whole files, are left out.
        """
        return {row_id: shard for shard, segment in self.chosen(row_ids) for row_id in segment.row_ids()}

    def chosen(self, row_ids: Iterable[str]) -> Iterator[tuple[int, Segment]]:
        """Find rows in the plan, joined into runs of consecutive rows.

        Example: rows 3, 4 and 7 of a file in one shard give two segments, rows 3 to 4 and row 7.

        Yields:
            Shard number and rows of each run, in the order of the plan.
        """
        wanted: dict[str, list[int]] = {}
        for row_id in row_ids:
            key, _, position = row_id.rpartition("-")
            if key:  # the id of a row that stands for a whole file is the key alone
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
        """The plan as it is stored with the output: a Parquet file."""
        metadata = {"magbatch.columns": base64.b64encode(self.columns.serialize().to_pybytes()).decode()}
        if self.group is not None:
            metadata["magbatch.group"] = base64.b64encode(self.group.encode()).decode()
        if self.engine_hints:
            metadata[_HINTS] = json.dumps(self.engine_hints)
        if self.revision is not None:
            metadata["magbatch.revision"] = self.revision
        if self.id is not None:
            metadata[PLAN_ID_KEY] = self.id
        sink = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata(metadata), sink, compression="zstd")
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        """Parse a stored plan of this version or an older one.

        Raises:
            OutputError: The content is damaged, or is not a plan.
        """
        try:
            table = pq.read_table(io.BytesIO(data))
            metadata = table.schema.metadata or {}
            columns = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(metadata[b"magbatch.columns"])))
            group, hints = metadata.get(b"magbatch.group"), json.loads(metadata.get(_HINTS.encode(), b"{}"))
            if "digest" not in table.column_names:  # older versions did not write it
                nothing = pa.nulls(table.num_rows, COLUMNS.field("digest").type)
                table = table.add_column(COLUMNS.get_field_index("digest"), "digest", nothing)
            revision = metadata[b"magbatch.revision"].decode() if b"magbatch.revision" in metadata else None
            table = table.cast(COLUMNS if group is None else COLUMNS.append(POSITIONS))
            _check_values(table)
            group_name = None if group is None else base64.b64decode(group).decode()
            plan_id = metadata[PLAN_ID_KEY.encode()].decode() if PLAN_ID_KEY.encode() in metadata else None
            plan = cls.of(table, columns, group=group_name, engine_hints=hints, revision=revision)
            return replace(plan, id=plan_id)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise OutputError(f"_magbatch/plan.parquet is damaged: {error}") from error


def _check_values(table: pa.Table) -> None:
    """Refuse values that no plan has, before they are used.

    Raises:
        ValueError: A value is refused; the message names its column.
    """
    for name in ("shard", "path", "key", "size", "tag", "start", "rows"):
        column = table.column(name)
        if column.null_count:
            raise ValueError(f"its column {name} has {column.null_count:,} nulls")
        if pa.types.is_integer(column.type) and table.num_rows and pa.compute.min(column).as_py() < 0:
            raise ValueError(f"its column {name} has a number below 0")
    if table.num_rows and pa.compute.max(table.column("rows")).as_py() > MAX_SEGMENT_ROWS:
        raise ValueError(f"its column rows has a number above {MAX_SEGMENT_ROWS:,}")
    unknown: set[Any] = set(table.column("code").unique().to_pylist()) - {None, *ErrorCode}
    if unknown:
        raise ValueError(f"its column code has {min(unknown)!r}, which is not an error code")


def _segments(record: dict[str, Any]) -> list[Segment]:
    """The rows of a record as runs of consecutive rows.

    Example: start 5 and positions [0, 1, 4] give two segments, rows 5 to 6 and row 9.
    """
    values = {name: value for name, value in record.items() if name not in ("shard", "positions")}
    values["code"] = ErrorCode(str(values["code"])) if values["code"] else None
    whole = Segment(**values)
    positions = record.get("positions")
    if positions is None:
        return [whole]
    begins = [0, *(at for at in range(1, len(positions)) if positions[at] != positions[at - 1] + 1), len(positions)]
    return [replace(whole, start=whole.start + positions[begin], rows=end - begin) for begin, end in pairwise(begins)]
