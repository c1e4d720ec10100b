"""Finished rows -> one whole Parquet object.

Writing an object commits its rows: the object becomes visible whole or not at all, and its rows are done from then on.
Its schema is the output's contract and does not depend on the values. The size of an object is bounded, and a row that
no object can hold fails alone.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.arrow_types import Array, ChunkedArray
from magbatch.errors import ErrorCode, Step, StorageError
from magbatch.rows import DeadLetter, FinishedRow
from magbatch.schema import (
    ERRORS,
    NO_COLUMNS,
    RESULTS,
    TOKEN_FIELDS,
    ObjectName,
    errors_schema,
    new_attempt,
    results_schema,
)
from magbatch.storage import Store
from magbatch.totals import Totals

# Bytes of carried cells and generated text in one object, unless a single row has more. A replica builds up to 32
# objects at once, and each is in memory three times: as a table, as Parquet, and as a request.
OBJECT_BYTES = 64 << 20

MAX_TAKEN_BYTES = 1 << 30  # bytes of one array; the offsets of Arrow's text and binary types end at 2 GB
MAX_TOKENS = 2**31 - 1  # largest count that the int32 columns of tokens hold
MAX_CAUSE_CHARS = 500

Row = FinishedRow | DeadLetter


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed object.

    Attributes:
        name: Name of the object.
        totals: Totals of its rows, as in its footer.
        bytes: Size of the object.
    """

    name: ObjectName
    totals: Totals
    bytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """Outcome of a commit, which takes the first of the given rows.

    Attributes:
        taken: Number of rows that were taken: committed or refused.
        committed: The object that holds the committed rows; None if no object can hold any of them.
        refused: Dead letters of the rows that no object can hold. They still have to be committed.
    """

    taken: int
    committed: Committed | None
    refused: list[DeadLetter]


class ObjectWriter:
    """Writer of the objects of one attempt at a shard.

    Args:
        store: Store of the job's output.
        carried: Table of the carried columns of the shard's rows.
        positions: Row id to its row number in `carried`; rows that could not be read have none.
        model: Name of the model, for the column `model`.
        shard: Index of the shard.
        made: Schema of the columns that are derived from the answers.
        with_answer: Whether dead letters have a column for a refused answer.
        plan_id: Id of the job's plan, which is part of the objects' names; None for plans of versions that gave none.
    """

    def __init__(
        self,
        store: Store,
        carried: pa.Table,
        positions: dict[str, int],
        model: str,
        shard: int,
        made: pa.Schema = NO_COLUMNS,
        *,
        with_answer: bool = False,
        plan_id: str | None = None,
    ) -> None:
        self._store = store
        self._made = made
        self._with_answer = with_answer
        self._carried = _Carried(carried, positions)
        self._model = model
        self._shard = shard
        self._plan_id = plan_id
        self._attempt = new_attempt(plan_id)
        self._seq = 0
        self._dropped: dict[str, str] = {}  # row id to the reason why a dead letter loses its carried cells

    def commit(self, rows: Sequence[Row]) -> Written:
        """Commit as many of the first rows as one object holds. Call it again for the rows that are left.

        An answered row that cannot be written even alone becomes a dead letter. A dead letter that cannot be written
        loses its carried cells.

        Args:
            rows: Answered rows or dead letters, not both; at least one.

        Raises:
            StorageError: The store refuses; none of these rows is visible.
        """
        rows = rows[: self._fitting(rows)]
        while True:
            kept, refused = list(rows), list[DeadLetter]()
            built = self._built(kept)
            if built is None:
                refused = [letter for row in rows if (letter := self._refused(row)) is not None]
                lost = {letter.row_id for letter in refused}
                kept = [row for row in rows if row.row_id not in lost]
                built = self._built(kept) if kept else None
            if built is not None or not kept:
                return Written(len(rows), self._put(built, len(kept)) if built is not None else None, refused)
            rows = rows[: (len(rows) + 1) // 2]  # each can be written, but not all together

    def results(self, rows: Sequence[FinishedRow]) -> Committed:
        """Commit answered rows, all in one object.

        Raises:
            StorageError: The store refuses; none of these rows is visible.
        """
        return self._put(self._build_results(rows), len(rows))

    def errors(self, letters: Sequence[DeadLetter]) -> Committed:
        """Commit dead letters, all in one object; raises as `results` does."""
        return self._put(self._build_errors(letters), len(letters))

    def _fitting(self, rows: Sequence[Row]) -> int:
        """Number of the first rows that fit an object; at least one."""
        most = max(len(row.answers) if isinstance(row, FinishedRow) else 1 for row in rows)
        carries = self._carried.nbytes * most > OBJECT_BYTES // 2  # else all cells fit: no need to measure each row
        sizes = accumulate(self._size(row, carries=carries) for row in rows)
        return max(1, sum(size <= OBJECT_BYTES for size in sizes))

    def _size(self, row: Row, *, carries: bool) -> int:
        """Characters of a row's text plus bytes of its carried cells, which each sample of the row repeats."""
        carried = self._carried.size_of(row.row_id) if carries else 0
        if isinstance(row, DeadLetter):
            return carried + len(row.message) + len(row.answer or "")
        groups = sum(len(group.reasoning or "") + len(group.answer or "") for group in row.page_group_answers)
        text = sum(len(answer.reasoning or "") + len(answer.answer or "") for answer in row.answers)
        return text + len(row.answers) * (carried + groups)

    def _built(self, rows: Sequence[Row]) -> "_Object | None":
        """An object with these rows; None if it cannot be built."""
        try:
            return self._build(rows)
        except Exception:  # noqa: BLE001 - a row's boundary: each row is then tried alone
            return None

    def _build(self, rows: Sequence[Row]) -> "_Object":
        answered = [row for row in rows if isinstance(row, FinishedRow)]
        return self._build_results(answered) if answered else self._build_errors(cast("Sequence[DeadLetter]", rows))

    def _refused(self, row: Row) -> DeadLetter | None:
        """The dead letter of an answered row that no object can hold.

        Returns:
            None if an object can hold the row, or if the row is a dead letter, which loses its carried cells instead.
        """
        try:
            self._build([row])
        except Exception as error:  # noqa: BLE001 - a row's boundary: building may raise anything
            cause = f"{type(error).__name__}: {error}"[:MAX_CAUSE_CHARS]
            if isinstance(row, FinishedRow):
                return DeadLetter(
                    row.row_id,
                    Step.WRITE,
                    ErrorCode.INTERNAL,
                    f"results cannot hold the row: {cause}",
                    prompt_tokens=row.prompt_tokens,
                    cached_tokens=row.cached_tokens,
                    reasoning_tokens=sum(answer.reasoning_tokens for answer in row.answers),
                    answer_tokens=sum(answer.answer_tokens for answer in row.answers),
                )
            self._dropped[row.row_id] = cause
        return None

    def _build_results(self, rows: Sequence[FinishedRow]) -> "_Object":
        samples = [(row, sample, answer) for row in rows for sample, answer in enumerate(row.answers)]
        fields: dict[str, list[Any]] = {
            "row_id": [row.row_id for row, _, _ in samples],
            "sample": [sample for _, sample, _ in samples],
            "reasoning": [answer.reasoning for _, _, answer in samples],
            "reasoning_status": [str(answer.status) for _, _, answer in samples],
            "answer": [answer.answer for _, _, answer in samples],
            "finish_reason": [answer.finish_reason for _, _, answer in samples],
            "prompt_tokens": [row.prompt_tokens for row, _, _ in samples],
            "reasoning_tokens": [answer.reasoning_tokens for _, _, answer in samples],
            "answer_tokens": [answer.answer_tokens for _, _, answer in samples],
            "cached_tokens": [row.cached_tokens for row, _, _ in samples],
            "latency_s": [row.latency_s for row, _, _ in samples],
            "model": [self._model] * len(samples),
            "attempt": [self._attempt] * len(samples),
            "finished_at": [row.finished_at for row, _, _ in samples],
        }
        of_rows = {
            "vote": lambda row: row.vote,
            "document_pages": lambda row: row.total_pages,
            "document_truncated": lambda row: row.truncated,
            "document_parts": _document_parts,
        }
        for name in self._made.names:
            of_row = of_rows.get(name)
            fields[name] = [of_row(row) if of_row else answer.values.get(name) for row, _, answer in samples]
        return self._table(RESULTS, results_schema(self._carried.schema, self._made), fields)

    def _build_errors(self, letters: Sequence[DeadLetter]) -> "_Object":
        now = datetime.now(UTC)
        fields: dict[str, list[Any]] = {
            "row_id": [letter.row_id for letter in letters],
            "step": [str(letter.step) for letter in letters],
            "error_code": [str(letter.code) for letter in letters],
            "message": [_as_text(self._message(letter)) for letter in letters],
            "attempt": [self._attempt] * len(letters),
            "finished_at": [now] * len(letters),
        }
        schema = errors_schema(self._carried.schema, with_answer=self._with_answer)
        fields["answer"] = [_as_text(letter.answer) for letter in letters]
        # A count that is too large for its column may be the reason why the row is a dead letter.
        fields |= {name: [min(getattr(letter, name), MAX_TOKENS) for letter in letters] for name in TOKEN_FIELDS}
        return self._table(ERRORS, schema, fields)

    def _message(self, letter: DeadLetter) -> str:
        dropped = self._dropped.get(letter.row_id)
        return letter.message if dropped is None else f"{letter.message}; carried columns are left out: {dropped}"

    def _table(self, kind: str, schema: pa.Schema, fields: dict[str, list[Any]]) -> "_Object":
        carried = self._carried.take([row_id if row_id not in self._dropped else "" for row_id in fields["row_id"]])
        columns = [
            carried.column(field.name)
            if field.name in carried.column_names
            else pa.array(fields[field.name], field.type)
            for field in schema
        ]
        sink, table = io.BytesIO(), pa.Table.from_arrays(columns, schema=schema)
        totals = Totals.of(kind, table)
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(totals.to_footer())  # type: ignore[arg-type]  # Arrow takes bytes too
        return _Object(kind, sink.getvalue(), totals)

    def _put(self, built: "_Object", rows: int) -> Committed:
        name = ObjectName(built.kind, self._shard, self._attempt, self._seq, rows)
        try:
            self._store.write(str(name), built.data)
        except StorageError:
            # The object may be visible all the same: the next one must have the name of another attempt.
            self._attempt, self._seq = new_attempt(self._plan_id), 0
            raise
        self._seq += 1
        return Committed(name, built.totals, len(built.data))


class _Carried:
    """Carried columns of a shard, by row id, of any size.

    Arrow joins the chunks of a column before it takes rows from it, but an array of text or bytes holds 2 GB at most.
    So columns of that size are taken cell by cell.

    Args:
        table: Table with a row for each row of the shard.
        positions: Row id to its row number in `table`; rows that could not be read have none.

    Attributes:
        schema: Names and types of the columns.
        nbytes: Bytes of all cells.
    """

    def __init__(self, table: pa.Table, positions: dict[str, int]) -> None:
        self._table, self._positions = table, positions
        self.schema: pa.Schema = table.schema
        self.nbytes: int = table.nbytes

    def size_of(self, row_id: str) -> int:
        """Bytes of the cells of a row."""
        position = self._positions.get(row_id)
        return 0 if position is None else self._table.slice(position, 1).nbytes

    def take(self, row_ids: Sequence[str]) -> pa.Table:
        """The cells of rows, in the given order; nulls for rows that could not be read."""
        where = [self._positions.get(row_id) for row_id in row_ids]
        most = max(Counter(where).values(), default=0)
        if self.nbytes * most <= MAX_TAKEN_BYTES:
            return self._table.take(pa.array(where, pa.int64()))
        return pa.table([_cells(column, where) for column in self._table.columns], schema=self.schema)


def _cells(column: ChunkedArray, where: list[int | None]) -> ChunkedArray:
    """Single cells of a column, without copies; null for None."""
    cells: list[Array] = []
    for position in where:
        cells += [pa.nulls(1, column.type)] if position is None else column.slice(position, 1).chunks
    return pa.chunked_array(cells, column.type)


@dataclass(frozen=True, slots=True)
class _Object:
    """An object that is not written yet."""

    kind: str
    data: bytes
    totals: Totals


def _as_text(text: str | None) -> str | None:
    """Text that can be stored. A path may hold surrogates, which UTF-8 cannot encode: they become question marks."""
    return None if text is None else text.encode(errors="replace").decode()


def _document_parts(row: FinishedRow) -> list[dict[str, Any]]:
    return [
        {
            "first_page": group.first_page,
            "last_page": group.last_page,
            "reasoning": group.reasoning,
            "reasoning_status": group.status,
            "answer": group.answer,
        }
        for group in row.page_group_answers
    ]
