"""Finished rows -> one whole Parquet object.

An object written here is the commit of its rows: it is visible whole or not at all, and the rows in
it are done exactly from then on. Its schema is the output's contract, whatever the values.
"""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.errors import StorageError
from magbatch.rows import (
    ERRORS,
    NO_COLUMNS,
    RESULTS,
    DeadLetter,
    FinishedRow,
    PartName,
    errors_schema,
    new_attempt,
    results_schema,
)
from magbatch.storage import Store
from magbatch.totals import Totals


@dataclass(frozen=True, slots=True)
class Committed:
    """One object that is visible now.

    Attributes:
        name: Its name.
        totals: Of its rows, as its footer has them.
        bytes: Its size.
    """

    name: PartName
    totals: Totals
    bytes: int


class PartWriter:
    """Writes the objects of one attempt at a shard.

    Args:
        store: The job's output.
        carried: Carried columns of the shard's rows.
        positions: Row id to its row in `carried`; a row that could not be read has none.
        model: The model's name, for the `model` column.
        shard: The shard's number.
        made: The columns that the job has its answers made into.
        with_answer: The job may refuse answers: dead letters have a column for them.
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
    ) -> None:
        self._store = store
        self._made = made
        self._with_answer = with_answer
        self._carried = carried
        self._positions = positions
        self._model = model
        self._shard = shard
        self._attempt = new_attempt()
        self._seq = 0

    def results(self, rows: list[FinishedRow]) -> Committed:
        """Commit answered rows.

        Raises:
            StorageError: Nothing of them is visible.
        """
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
            "document_parts": _parts,
        }
        for name in self._made.names:
            of_row = of_rows.get(name)
            fields[name] = [of_row(row) if of_row else answer.values.get(name) for row, _, answer in samples]
        return self._commit(RESULTS, len(rows), results_schema(self._carried.schema, self._made), fields)

    def errors(self, letters: list[DeadLetter]) -> Committed:
        """Commit dead letters; raises as `results` does."""
        now = datetime.now(UTC)
        fields: dict[str, list[Any]] = {
            "row_id": [letter.row_id for letter in letters],
            "step": [str(letter.step) for letter in letters],
            "error_code": [str(letter.code) for letter in letters],
            # A path can hold what is no text (surrogates): a message must not stop its own commit.
            "message": [letter.message.encode(errors="replace").decode() for letter in letters],
            "attempt": [self._attempt] * len(letters),
            "finished_at": [now] * len(letters),
        }
        schema = errors_schema(self._carried.schema, with_answer=self._with_answer)
        fields["answer"] = [letter.answer for letter in letters]
        return self._commit(ERRORS, len(letters), schema, fields)

    def _commit(self, kind: str, rows: int, schema: pa.Schema, fields: dict[str, list[Any]]) -> Committed:
        where = pa.array([self._positions.get(str(row_id)) for row_id in fields["row_id"]], pa.int64())
        carried = self._carried.take(where)  # a null position gives null values
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
            writer.add_key_value_metadata(totals.to_footer())
        data = sink.getvalue()
        name = PartName(kind, self._shard, self._attempt, self._seq, rows)
        try:
            self._store.write(str(name), data)
        except StorageError:
            # It may be visible all the same: what comes next must look like another attempt's.
            self._attempt, self._seq = new_attempt(), 0
            raise
        self._seq += 1
        return Committed(name, totals, len(data))


def _parts(row: FinishedRow) -> list[dict[str, Any]]:
    return [
        {
            "first_page": part.first_page,
            "last_page": part.last_page,
            "reasoning": part.reasoning,
            "reasoning_status": part.status,
            "answer": part.answer,
        }
        for part in row.parts
    ]
