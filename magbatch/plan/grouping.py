"""Grouping: rows that start with the same long text or document are put next to each other.

A replica that answers such rows together computes their common prefix once. The engine's prefix cache holds it, but
only while few other prefixes come in between. Planning reads a single input column, the first of each prompt, and only
if footers and the first rows show that its values repeat. Only hashes of the values are kept.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.arrow_types import Array, DictionaryArray
from magbatch.errors import JobError
from magbatch.plan import windows
from magbatch.plan.footers import ColumnStats, PrefixColumn
from magbatch.plan.windows import Arrangement, ColumnValues, Cutter, pieces
from magbatch.rows import Segment
from magbatch.spec import AUTO, NONE, JobSpec
from magbatch.spec.template import leading_column
from magbatch.storage.columns import is_bytes
from magbatch.storage.input_file import open_input
from magbatch.storage.parquet import open_parquet

MIN_ROWS_PER_VALUE = 2  # average below which hardly any prefix is shared
MIN_SHARED_BYTES = 1000  # average length of a text, about 250 tokens; an engine computes fewer in no time
MAX_GROUPED_ROWS = 2_000_000  # a grouped row takes 3 bytes of the stored plan and 200 bytes of the driver's memory
MAX_READ_BYTES = 256 << 20  # compressed size of a column up to which planning reads it without being asked to
UNIQUE = 0.95  # distinct values per row; a column whose values come twice each has fewer in an eighth of a window
MAX_FILES_LOOKED_AT = 16  # files whose first rows are read; each costs a few requests, one after the other
READERS = 16  # files read at once, if rows share values
BATCH_BYTES, MAX_BATCH_ROWS = 8 << 20, 4096  # size of a batch of the column: bounds the memory of a reader

_NULL = 0  # hash of null


@dataclass(frozen=True, slots=True)
class GroupedFile:
    """An input file while rows are grouped.

    Attributes:
        segment: All rows of the file.
        stats: Statistics of the prefix column from the footer; None if the rows keep their order.
    """

    segment: Segment
    stats: ColumnStats | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.segment.rows


@dataclass(frozen=True, slots=True)
class GroupingResult:
    """Result of grouping.

    Attributes:
        arrangement: The shards; None if all rows keep their order.
        note: Remark for a person.
        distinct: Whether the column's first values were read and hardly any came twice.
    """

    arrangement: Arrangement | None = None
    note: str | None = None
    distinct: bool = False


@dataclass(slots=True)
class _FirstValues:
    """The first values of the prefix column.

    Attributes:
        lengths: Length of each value (bytes), by hash.
        rows: Number of rows with a value.
    """

    lengths: dict[int, int] = field(default_factory=dict)
    rows: int = 0

    @property
    def distinct(self) -> bool:
        """Whether hardly any value comes twice."""
        return len(self.lengths) > UNIQUE * self.rows

    def shared(self, *, document: bool) -> bool:
        """Whether rows share long values; a document counts as long, whatever the length of its name."""
        enough = 0 < len(self.lengths) * MIN_ROWS_PER_VALUE <= self.rows
        return enough and (document or sum(self.lengths.values()) >= MIN_SHARED_BYTES * len(self.lengths))


def prefix_column(spec: JobSpec) -> PrefixColumn | None:
    """The column whose values rows may share; None without such a column, or if the spec turns grouping off."""
    columns, group = spec.input.columns, spec.input.group
    if group == NONE:
        return None
    if group != AUTO:
        return PrefixColumn(group, forced=True)
    if columns.messages:
        return None
    # A prompt is the system prompt, the document, the images, and then the text.
    if columns.document:
        return PrefixColumn(columns.document, document=spec.input.document.strings != "text")
    if columns.images:
        return PrefixColumn(columns.images[0], document=True)
    name = columns.prompt if spec.prompt.template is None else leading_column(spec.prompt.template)
    return PrefixColumn(name) if name else None


def arrange(prefix: PrefixColumn, files: list[GroupedFile], target_rows: int, max_rows: int) -> GroupingResult:
    """Group the rows of a job if they share prefixes and grouping is affordable.

    Args:
        prefix: Column that prompts start with.
        files: All input files, in the order of the plan.
        target_rows: Number of rows in a shard.
        max_rows: Number of rows that a shard may have to keep a group whole.

    Raises:
        StorageError: The input's storage does not answer.
    """
    if not prefix.forced:
        files = [file if file.stats and file.stats.may_repeat else replace(file, stats=None) for file in files]
    if all(file.stats is None for file in files):
        note = f"input.group: {prefix.column!r} is made of other columns: rows are left in their order"
        return GroupingResult(note=note if prefix.forced else None)
    if not prefix.forced:
        first = _first_values(prefix, files)
        if not first.shared(document=prefix.document):
            can_read_all = all(file.stats is not None for file in files if file.rows)
            return GroupingResult(distinct=first.distinct and can_read_all)
    too_large = _too_large(prefix, files)
    if too_large is not None:
        return GroupingResult(note=too_large)
    with ThreadPoolExecutor(READERS) as pool:
        values = list(pool.map(lambda file: _all_values(file, prefix.column), files))
    if all(found is None for found in values):
        note = f"no file's {prefix.column!r} can be read as text, bytes or numbers: rows are left in their order"
        return GroupingResult(note=note)
    cutter = Cutter(target_rows, max_rows)
    for piece in pieces([file.rows for file in files], values):
        cutter.add(piece)
    return GroupingResult(cutter.arrangement(), cutter.note(prefix.column))


def _too_large(prefix: PrefixColumn, files: list[GroupedFile]) -> str | None:
    """The note of a job that is too large to group; None if it is not."""
    rows = sum(file.rows for file in files)
    column_bytes = sum(file.stats.column_bytes for file in files if file.stats is not None)
    if rows > MAX_GROUPED_ROWS:
        return f"rows share {prefix.column!r}, but above {MAX_GROUPED_ROWS:,} rows they are left in their order"
    if not prefix.forced and column_bytes > MAX_READ_BYTES:
        return (
            f"rows share {prefix.column!r}, but to group them {column_bytes >> 20:,} MB would be read first; "
            f"input.group: {prefix.column} groups them anyway"
        )
    return None


def _first_values(prefix: PrefixColumn, files: list[GroupedFile]) -> _FirstValues:
    """Read the values of the first window; an eighth of a window is enough if hardly any value comes twice."""
    first = _FirstValues()
    rows = size = 0
    chosen = [(file.segment, file.stats) for file in files if file.stats is not None][:MAX_FILES_LOOKED_AT]
    for segment, stats in chosen:
        try:
            for found in _values(segment, prefix.column, stats):
                there = found.hashes != _NULL
                lengths = found.sizes - stats.other_row_bytes
                first.lengths |= zip(found.hashes[there].tolist(), lengths[there].tolist(), strict=True)
                rows, size = rows + len(found.hashes), size + int(found.sizes.sum())
                first.rows += int(there.sum())
                looked = max(rows / windows.WINDOW_ROWS, size / windows.WINDOW_BYTES)
                if looked > 1 / 8 and first.distinct:
                    return first
                if looked >= 1:
                    break
        except JobError:
            raise
        except Exception:  # noqa: BLE001 - a file's boundary: the read task reports what is wrong with the file
            continue
        if rows >= windows.WINDOW_ROWS or size >= windows.WINDOW_BYTES:
            break
    return first


def _all_values(file: GroupedFile, column: str) -> ColumnValues | None:
    """Values of a whole file; None if its rows keep their order."""
    if file.stats is None:
        return None
    try:
        found = list(_values(file.segment, column, file.stats))
    except JobError:
        raise
    except Exception:  # noqa: BLE001 - a file's boundary: the read task reports what is wrong with the file
        return None
    hashes = np.concatenate([values.hashes for values in found])
    sizes = np.concatenate([values.sizes for values in found])
    return ColumnValues(hashes, sizes) if len(hashes) == file.rows else None


def _values(segment: Segment, column: str, stats: ColumnStats) -> Iterator[ColumnValues]:
    """Values of a file, batch by batch."""
    with open_input(segment.path, segment.size, segment.tag, segment.digest) as source:
        file: pq.ParquetFile = open_parquet(source, read_dictionary=[column])
        batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, stats.value_bytes)))
        for batch in file.iter_batches(batch_size=batch_rows, columns=[column]):
            yield _hashed(batch.column(0), stats.other_row_bytes)


def _hashed(column: Array, other_row_bytes: int) -> ColumnValues:
    """Hash values; each distinct value is hashed once.

    Args:
        column: Values of the prefix column, (rows,).
        other_row_bytes: Bytes of a row's other columns.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    encoded = cast(DictionaryArray, column if pa.types.is_dictionary(column.type) else column.dictionary_encode())
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    used = np.unique(codes)
    used = used[used < len(encoded.dictionary)]
    values: Any = encoded.dictionary.take(pa.array(used))
    if not is_bytes(values.type):
        values = values.cast(pa.large_string())  # a number has the same text in every type that a file may use for it
    values = values.cast(pa.large_binary())
    hashes = np.full(len(encoded.dictionary) + 1, _NULL, dtype=np.uint64)  # the last is the hash of null
    sizes = np.zeros(len(hashes), dtype=np.int64)
    digests = b"".join(blake2b(value, digest_size=8).digest() for value in values.to_pylist())
    hashes[used] = np.frombuffer(digests, dtype=np.uint64)
    sizes[used] = pa.compute.binary_length(values).to_numpy()
    return ColumnValues(hashes[codes], sizes[codes] + other_row_bytes)
