"""Findings of the last pass over all committed objects: repeated user ids, and the slowest rows.

Both need bounded memory, whatever the number of rows.
"""

import hashlib
import heapq
import shutil
import tempfile
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.compute

from magbatch.arrow_types import ChunkedArray
from magbatch.errors import StorageError
from magbatch.report.texts import as_text
from magbatch.schema import RESULTS
from magbatch.storage.columns import as_keys, convert, plain
from magbatch.temporary import temporary_files

BUCKETS = 64  # files of hashed ids; memory holds one file at a time: 2.5 MB of hashes for 10 million rows
DIGEST_BYTES = 16
SLOWEST_ROWS = 10  # slowest rows that the report lists
ROOM = "16 bytes a row are needed"


class DuplicateIds:
    """Counts input rows whose user id an earlier row already has. Hashes of the ids are kept in temporary files.

    Args:
        column: Output column that holds the user's id; None if the job has none, and nothing is counted.
    """

    def __init__(self, column: str | None) -> None:
        self._column = column
        self._files = list[IO[bytes]]()
        with temporary_files(ROOM):
            self._folder = Path(tempfile.mkdtemp(prefix="magbatch-ids-"))

    def __enter__(self) -> Self:
        try:
            with temporary_files(ROOM):
                for index in range(BUCKETS if self._column is not None else 0):
                    self._files.append((self._folder / str(index)).open("wb"))
        except StorageError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            with suppress(OSError):  # a failed write was raised before; after a success the data is not needed
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def observe(self, kind: str, table: pa.Table) -> None:
        """Observe the ids of one object. A row counts once, however many samples it has.

        Args:
            kind: Kind of the object: `results` or `errors`.
            table: Records of the object, with the id column; of results also with `sample`.
        """
        if self._column is None:
            return
        if kind == RESULTS:
            table = table.filter(pa.compute.equal(table.column("sample"), pa.scalar(0)))
        with temporary_files(ROOM):
            for value in _keys(table.column(self._column)):
                if value is not None:
                    data = value if isinstance(value, bytes) else repr(value).encode()
                    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
                    self._files[digest[0] % BUCKETS].write(digest)

    def count(self) -> int:
        """Return the number of rows whose id an earlier row already has."""
        repeated = 0
        for file in self._files:
            with temporary_files(ROOM):
                file.flush()
                data = Path(file.name).read_bytes()
            digests = [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]
            repeated += len(digests) - len(set(digests))
        return repeated


class Slowest:
    """Keeps the rows with the longest latency.

    Args:
        column: Output column that holds the user's id; None if the job has none.
        count: Number of rows kept.
    """

    def __init__(self, column: str | None, count: int = SLOWEST_ROWS) -> None:
        self._columns = [*([column] if column else []), "row_id", "latency_s", "reasoning_tokens", "answer_tokens"]
        self._column, self._count = column, count
        self._rows: list[dict[str, Any]] = []

    def observe(self, kind: str, table: pa.Table) -> None:
        """Observe the rows of one object; arguments as for `DuplicateIds.observe`."""
        if kind != RESULTS or not table.num_rows:
            return
        if len(self._rows) == self._count and pa.compute.max(table["latency_s"]).as_py() <= self._rows[-1]["latency_s"]:
            return  # true for nearly all objects of a large job, so this check must be cheap
        first = table.filter(pa.compute.equal(table.column("sample"), pa.scalar(0)))
        first = first.select(list(dict.fromkeys(self._columns)))
        order = [("latency_s", "descending")]
        longest = first.take(
            pa.compute.select_k_unstable(first, self._count, order)  # type: ignore[call-overload]  # takes tables too
        )
        ids = [None] * longest.num_rows if self._column is None else as_text(longest.column(self._column))
        rows = longest.select([name for name in longest.column_names if name != self._column]).to_pylist()
        self._rows += [{**row, "id": one} for row, one in zip(rows, ids, strict=True)]
        self._rows = heapq.nlargest(self._count, self._rows, key=itemgetter("latency_s"))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, slowest first: `row_id`, `id` (the user's), `latency_s` and numbers of tokens."""
        return [
            {name: row[name] for name in ("row_id", "id", "latency_s", "reasoning_tokens", "answer_tokens")}
            for row in self._rows
        ]


def _keys(column: ChunkedArray) -> list[Any]:
    """Convert user ids to Python values that are equal exactly if the ids are.

    Some ids, such as dates past the year 9999, have no Python value of their own and become numbers or bytes.
    """
    kind = as_keys(plain(column.type))
    return [key for chunk in column.chunks for key in convert(chunk, kind).to_pylist()]
