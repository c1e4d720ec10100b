"""Rows of the input files become shards: the number of rows in a shard, and the rows themselves."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.arrow_types import Array
from magbatch.plan.inputs import PlannedFile
from magbatch.plan.plan import COLUMNS, POSITIONS, Plan
from magbatch.plan.windows import Arrangement, Integers
from magbatch.rows import Segment
from magbatch.spec import JobSpec
from magbatch.spec.sections_input import MIN_SHARD_ROWS
from magbatch.storage.sizes import SHARD_BYTES

# A shard is one block in Ray's object store, and a decoded page is about 7 MB.
MAX_IMAGE_SHARD_ROWS = 32
MAX_DOCUMENT_SHARD_ROWS = 8  # rows with at most limits.max_images pages each
MAX_LONG_DOCUMENT_SHARD_ROWS = 2  # rows with at most limits.max_pages pages each: 1 GB if all pages are large


def shard_limits(segments: list[Segment], spec: JobSpec, columns: pa.Schema) -> tuple[int, int]:
    """Number of rows in a shard, and number of rows that a shard may have to keep a group whole."""
    total = sum(segment.rows for segment in segments)
    target_rows, max_rows = spec.shard_rows(total), spec.group_rows(total)
    if spec.input.shard_rows is not None:
        return target_rows, max_rows
    bounds = [MAX_IMAGE_SHARD_ROWS] if spec.input.columns.images else []
    if has_pictures(spec, columns):
        long = spec.input.document.overflow == "map_reduce"
        bounds.append(MAX_LONG_DOCUMENT_SHARD_ROWS if long else MAX_DOCUMENT_SHARD_ROWS)
    return min([target_rows, *bounds]), min([max_rows, *bounds])


def plan_in_order(
    segments: list[Segment],
    spec: JobSpec,
    columns: pa.Schema,
    *,
    engine_hints: dict[str, Any] | None = None,
    notes: Iterable[str] = (),
    row_bytes: dict[str, int] | None = None,
) -> Plan:
    """Make the plan of some rows that keep the order of their files.

    Args:
        segments: Rows, in the order of their files.
        spec: Spec of the job.
        columns: Planned input columns, with their types.
        engine_hints: Engine arguments that suit this input.
        notes: Remarks for a person.
        row_bytes: Bytes of a row as read, by path of its file; a missing file counts as one of small rows.
    """
    shard_rows, _ = shard_limits(segments, spec, columns)
    weights = {} if spec.input.shard_rows is not None else _weights(row_bytes or {}, shard_rows)
    # An array, not a list of tuples: a large job has millions of runs.
    runs = array("q", (number for run in _pack(segments, shard_rows, weights) for number in run))
    shard, source, start, rows = np.asarray(runs).reshape(-1, 4).T
    return Plan.of(_records(segments, shard, source, start, rows), columns, engine_hints=engine_hints, notes=notes)


def grouped_records(arrangement: Arrangement, segments: list[Segment]) -> pa.Table:
    """Records of a plan whose shards put rows together that are apart in their files.

    Args:
        arrangement: Shards as runs of rows.
        segments: Files, each as one segment of all its rows.
    """
    table = _records(segments, arrangement.shard, arrangement.source, arrangement.start, arrangement.rows)
    return table.append_column(POSITIONS, arrangement.positions)


def _records(segments: list[Segment], shard: Integers, source: Integers, start: Integers, rows: Integers) -> pa.Table:
    """Make one record for each run of rows.

    Args:
        segments: Whole files, or ranges of their rows.
        shard: int64 array (runs,): shard number of each run.
        source: int64 array (runs,): index into `segments` of each run.
        start: int64 array (runs,): first row of each run in its file, from 0.
        rows: int64 array (runs,): number of rows in each run.
    """
    by_run, sources = {"shard": shard, "start": start, "rows": rows}, pa.array(source, pa.int32())

    def by_segment(name: str) -> Array:
        values: Array = pa.array([getattr(segment, name) for segment in segments], COLUMNS.field(name).type)
        return values.take(sources)

    arrays = [
        pa.array(by_run[name], COLUMNS.field(name).type) if name in by_run else by_segment(name)
        for name in COLUMNS.names
    ]
    return pa.Table.from_arrays(arrays, schema=COLUMNS)


def has_pictures(spec: JobSpec, columns: pa.Schema) -> bool:
    """Whether the job's documents may have pictures; documents that are text have none."""
    name, document = spec.input.columns.document, spec.input.document
    if name is None or document.mode == "text":
        return False
    kind = columns.field(name).type
    return not (document.strings == "text" and (pa.types.is_string(kind) or pa.types.is_large_string(kind)))


def whole_files(files: list[PlannedFile]) -> list[Segment]:
    """All rows of all files; a file that cannot be read counts as one row."""
    return [
        file.segment(0, file.rows if file.problem is None else 1)
        for file in files
        if file.rows or file.problem is not None
    ]


def sample(files: list[PlannedFile], limit: int) -> list[Segment]:
    """Choose `limit` rows, spread evenly over all rows of readable files.

    Sample i is row floor(i * total / limit). Example: 3 of 10 rows are rows 0, 3 and 6.
    """
    good = [file for file in files if file.problem is None]
    total = sum(file.rows for file in good)
    wanted = min(limit, total)
    segments: list[Segment] = []
    index, first = 0, 0  # the current file, and the number of its first row in the input
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
    """Bytes of a row of each file, by path, from its footer."""
    return {file.info.name: file.facts.row_bytes for file in files if file.facts is not None}


def _weights(row_bytes: dict[str, int], shard_rows: int) -> dict[str, int]:
    """Weight of a row of each file: the number of small rows that take the same memory. Weights of 1 are left out."""
    max_weight = max(1, shard_rows // MIN_SHARD_ROWS)  # bounds the effect of a footer that exaggerates
    weights = {path: min(max_weight, held * shard_rows // SHARD_BYTES) for path, held in row_bytes.items()}
    return {path: weight for path, weight in weights.items() if weight > 1}


def _pack(segments: list[Segment], shard_rows: int, weights: dict[str, int]) -> Iterator[tuple[int, int, int, int]]:
    """Cut and join segments into shards whose weights add up to at most `shard_rows`.

    Example: shards of 4 rows; a file of 3 small rows, then a file of 3 rows of weight 2.

        shard 0: rows 0 to 2 of the first file
        shard 1: rows 0 and 1 of the second file
        shard 2: row 2 of the second file

    Args:
        segments: Rows, in order.
        shard_rows: Number of small rows in a shard.
        weights: Weight of a row of each file, by path; 1 if missing.

    Yields:
        Shard number, index of the segment, first row in its file and number of rows of each run.
    """
    shard, room = 0, shard_rows
    for index, segment in enumerate(segments):
        start, left, weight = segment.start, segment.rows, weights.get(segment.path, 1)
        while left:
            if room < weight:
                shard, room = shard + 1, shard_rows
            rows = min(room // weight, left)
            yield shard, index, start, rows
            start, left, room = start + rows, left - rows, room - rows * weight
