"""Rows of the input files -> shards: how many rows a shard has, and which."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.plan.inputs import PlannedFile
from magbatch.plan.plan import COLUMNS, POSITIONS, Plan
from magbatch.plan.windows import Arranged, Integers
from magbatch.rows import Segment
from magbatch.spec import JobSpec
from magbatch.spec.sections_input import MIN_SHARD_ROWS
from magbatch.storage.sizes import SHARD_BYTES

MAX_DOCUMENT_SHARD_ROWS = 8  # of at most limits.max_images pages each
MAX_LONG_DOCUMENT_SHARD_ROWS = 2  # of at most limits.max_pages each: a gigabyte where all are large
MAX_IMAGE_SHARD_ROWS = 32  # a shard is one block in Ray's object store; a decoded page is 7 MB


def rows_of_a_shard(segments: list[Segment], spec: JobSpec, columns: pa.Schema) -> tuple[int, int]:
    """Rows in a shard; and how many one may have so that a group stays whole."""
    total = sum(segment.rows for segment in segments)
    rows, most = spec.shard_rows(total), spec.group_rows(total)
    if spec.input.shard_rows is not None:
        return rows, most
    bounds = [MAX_IMAGE_SHARD_ROWS] if spec.input.columns.images else []
    if has_pictures(spec, columns):
        long = spec.input.document.overflow == "map_reduce"
        bounds.append(MAX_LONG_DOCUMENT_SHARD_ROWS if long else MAX_DOCUMENT_SHARD_ROWS)
    return min([rows, *bounds]), min([most, *bounds])


def planned(
    segments: list[Segment],
    spec: JobSpec,
    columns: pa.Schema,
    *,
    engine_hints: dict[str, Any] | None = None,
    notes: Iterable[str] = (),
    row_bytes: dict[str, int] | None = None,
) -> Plan:
    """The plan of some rows, in the order of their files."""
    shard_rows, _ = rows_of_a_shard(segments, spec, columns)
    rooms = {} if spec.input.shard_rows is not None else _rooms(row_bytes or {}, shard_rows)
    # Millions, of a large job:
    runs = array("q", (number for run in _pack(segments, shard_rows, rooms) for number in run))
    shard, source, start, rows = np.asarray(runs).reshape(-1, 4).T
    return Plan.of(_records(segments, shard, source, start, rows), columns, engine_hints=engine_hints, notes=notes)


def grouped(arranged: Arranged, segments: list[Segment]) -> pa.Table:
    """The records of shards that hold rows side by side which stand apart in their files."""
    table = _records(segments, arranged.shard, arranged.source, arranged.start, arranged.rows)
    return table.append_column(POSITIONS, arranged.positions)


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
        return pa.array([getattr(segment, name) for segment in segments], COLUMNS.field(name).type).take(files)

    arrays = [
        pa.array(made[name], COLUMNS.field(name).type) if name in made else of_file(name) for name in COLUMNS.names
    ]
    return pa.Table.from_arrays(arrays, schema=COLUMNS)


def has_pictures(spec: JobSpec, columns: pa.Schema) -> bool:
    """Whether the rows' documents may have pictures: text is small."""
    name, how = spec.input.columns.document, spec.input.document
    if name is None or how.mode == "text":
        return False
    kind = columns.field(name).type
    return not (how.strings == "text" and (pa.types.is_string(kind) or pa.types.is_large_string(kind)))


def whole_files(files: list[PlannedFile]) -> list[Segment]:
    """All rows of all files; a file that cannot be read is one row."""
    return [
        file.segment(0, file.rows if file.problem is None else 1)
        for file in files
        if file.rows or file.problem is not None
    ]


def sample(files: list[PlannedFile], limit: int) -> list[Segment]:
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


def row_bytes_of(files: list[PlannedFile]) -> dict[str, int]:
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
