"""Rows that begin with the same long text or document, placed side by side.

A replica that answers them together reads their common beginning once: the engine's prefix cache holds it,
but only as long as few other beginnings come between. Of the input, the column that prompts begin with is
read, and only where footers and the first rows show that its values repeat; of the values, hashes are kept.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.errors import JobError
from magbatch.plan import windows
from magbatch.plan.footers import ColumnStats, PrefixColumn
from magbatch.plan.windows import Arranged, Cutter, Values, pieces
from magbatch.rows import Segment
from magbatch.spec import AUTO, NONE, JobSpec
from magbatch.spec.template import leading_column
from magbatch.storage.columns import is_bytes
from magbatch.storage.input_file import open_input
from magbatch.storage.parquet import open_parquet

MIN_ROWS_A_VALUE = 2  # on average
MIN_SHARED_BYTES = 1000  # of a text, on average: some 250 tokens; fewer are read in no time
MAX_GROUPED_ROWS = 2_000_000  # a row that is placed takes 3 bytes of the stored plan, and 200 of the driver's memory
MAX_PLAN_BYTES = 256 << 20  # of the column, compressed, that planning reads without being told to
UNIQUE = 0.95  # distinct values a row: in an eighth of a window where values come twice, there are fewer
MAX_FILES_LOOKED_AT = 16  # each costs a few requests, one after the other
READERS = 16  # of all files, where rows share values
BATCH_BYTES, MAX_BATCH_ROWS = 8 << 20, 4096

_NULL = 0  # the hash of no value


@dataclass(frozen=True, slots=True)
class GroupedFile:
    """An input file. One without `footer` keeps its rows in their order.

    Attributes:
        segment: All its rows, as they are planned.
        footer: What its footer says of the column.
    """

    segment: Segment
    footer: ColumnStats | None = None

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return self.segment.rows


@dataclass(frozen=True, slots=True)
class GroupingResult:
    """What became of the column.

    Attributes:
        arranged: The shards; None where rows keep their order.
        note: What a person should know of it.
        distinct: Its first values were looked at, and hardly one comes twice.
    """

    arranged: Arranged | None = None
    note: str | None = None
    distinct: bool = False


@dataclass(slots=True)
class _Seen:
    """The column's first values.

    Attributes:
        lengths: Bytes by the value's hash.
        valued: Rows that have one.
    """

    lengths: dict[int, int] = field(default_factory=dict)
    valued: int = 0

    @property
    def distinct(self) -> bool:
        """Whether hardly one comes twice."""
        return len(self.lengths) > UNIQUE * self.valued

    def shared(self, *, document: bool) -> bool:
        """Whether rows share them, and they are long; documents are, whatever their names are."""
        enough = 0 < len(self.lengths) * MIN_ROWS_A_VALUE <= self.valued
        return enough and (document or sum(self.lengths.values()) >= MIN_SHARED_BYTES * len(self.lengths))


def lead_of(spec: JobSpec) -> PrefixColumn | None:
    """The column that may hold what rows share; None where there is none, or the spec wants no groups."""
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


def arrange(lead: PrefixColumn, sources: list[GroupedFile], target: int, most: int) -> GroupingResult:
    """Shards of a job whose rows share prefixes.

    Args:
        lead: The column.
        sources: Its files, in the order of the plan.
        target: Rows in a shard.
        most: Rows that a shard may have where that keeps a group whole.

    Raises:
        StorageError: The input's storage does not answer.
    """
    if not lead.forced:
        sources = [one if one.footer and one.footer.may_repeat else replace(one, footer=None) for one in sources]
    footers = [one.footer for one in sources if one.footer is not None]
    if not footers and lead.forced:
        return GroupingResult(
            note=f"input.group: {lead.column!r} is made of other columns: rows are left in their order"
        )
    if not footers:
        return GroupingResult()
    if not lead.forced:
        seen = _look(lead, sources)
        if not seen.shared(document=lead.document):
            all_can_be_seen = all(one.footer is not None for one in sources if one.rows)
            return GroupingResult(distinct=seen.distinct and all_can_be_seen)
    rows, read = sum(one.rows for one in sources), sum(footer.lead_bytes for footer in footers)
    if rows > MAX_GROUPED_ROWS:
        note = f"rows share {lead.column!r}, but above {MAX_GROUPED_ROWS:,} rows they are left in their order"
        return GroupingResult(note=note)
    if not lead.forced and read > MAX_PLAN_BYTES:
        return GroupingResult(
            note=f"rows share {lead.column!r}, but to group them {read >> 20:,} MB would be read first; "
            f"input.group: {lead.column} does it all the same"
        )
    with ThreadPoolExecutor(READERS) as pool:
        values = list(pool.map(lambda one: _all_values(one, lead.column), sources))
    if all(one is None for one in values):
        note = f"no file's {lead.column!r} can be read as text, bytes or numbers: rows are left in their order"
        return GroupingResult(note=note)
    cutter = Cutter(target, most)
    for piece in pieces([one.rows for one in sources], values):
        cutter.add(piece)
    return GroupingResult(cutter.arranged(), cutter.note(lead.column))


def _look(lead: PrefixColumn, sources: list[GroupedFile]) -> _Seen:
    """The values of the first window, or of an eighth of it where hardly one comes twice."""
    seen = _Seen()
    rows = size = 0
    chosen = [(one.segment, one.footer) for one in sources if one.footer is not None][:MAX_FILES_LOOKED_AT]
    for segment, footer in chosen:
        try:
            for found in _values(segment, lead.column, footer):
                there = found.hashes != _NULL
                seen.lengths |= zip(
                    found.hashes[there].tolist(), (found.sizes - footer.row_bytes)[there].tolist(), strict=True
                )
                rows, size = rows + len(found.hashes), size + int(found.sizes.sum())
                seen.valued += int(there.sum())
                looked = max(rows / windows.WINDOW_ROWS, size / windows.WINDOW_BYTES)
                if looked > 1 / 8 and seen.distinct:
                    return seen
                if looked >= 1:
                    break
        except JobError:
            raise
        except Exception:  # noqa: BLE001 - a file's boundary: what is wrong with it is found when it is read
            continue
        if rows >= windows.WINDOW_ROWS or size >= windows.WINDOW_BYTES:
            break
    return seen


def _all_values(source: GroupedFile, column: str) -> Values | None:
    """Of a whole file; None where its rows keep their order."""
    if source.footer is None:
        return None
    try:
        found = list(_values(source.segment, column, source.footer))
    except JobError:
        raise
    except Exception:  # noqa: BLE001 - a file's boundary, as above
        return None
    hashes = np.concatenate([one.hashes for one in found])
    return Values(hashes, np.concatenate([one.sizes for one in found])) if len(hashes) == source.rows else None


def _values(segment: Segment, column: str, footer: ColumnStats) -> Iterator[Values]:
    with open_input(segment.path, segment.size, segment.tag, segment.digest) as source:
        file: pq.ParquetFile = open_parquet(source, read_dictionary=[column])
        batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, footer.lead_row_bytes)))
        for batch in file.iter_batches(batch_size=batch_rows, columns=[column]):
            yield _hashed(batch.column(0), footer.row_bytes)


def _hashed(column: pa.Array, row_bytes: int) -> Values:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.fill_null(len(column.dictionary)).to_numpy(zero_copy_only=False)
    used = np.unique(codes)
    used = used[used < len(column.dictionary)]
    values = column.dictionary.take(pa.array(used))
    if not is_bytes(values.type):
        values = values.cast(pa.large_string())  # a number has the same text in whatever type a file keeps it
    values = values.cast(pa.large_binary())
    hashes = np.full(len(column.dictionary) + 1, _NULL, dtype=np.uint64)  # the last is null's
    sizes = np.zeros(len(hashes), dtype=np.int64)
    digests = b"".join(blake2b(value, digest_size=8).digest() for value in values.to_pylist())
    hashes[used] = np.frombuffer(digests, dtype=np.uint64)
    sizes[used] = pa.compute.binary_length(values).to_numpy()
    return Values(hashes[codes], sizes[codes] + row_bytes)
