"""The output contract: the columns of `results/` and `errors/`, and the names of committed objects.

Both are fixed by the job, and never inferred from data. An object's name carries the number of input rows that the
object finishes, so one listing of names tells which shards are complete.
"""

import re
import secrets
import time
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

SCHEMA_VERSION = "1"
RESULT_FIELDS: dict[str, pa.DataType] = {
    "reasoning": pa.large_string(),
    "reasoning_status": pa.string(),
    "answer": pa.large_string(),
    "finish_reason": pa.string(),
    "prompt_tokens": pa.int32(),
    "reasoning_tokens": pa.int32(),
    "answer_tokens": pa.int32(),
    "cached_tokens": pa.int32(),
    "latency_s": pa.float64(),
    "model": pa.string(),
    "attempt": pa.string(),
    "finished_at": pa.timestamp("us", tz="UTC"),
}
ERROR_FIELDS: dict[str, pa.DataType] = {
    "step": pa.string(),
    "error_code": pa.string(),
    "message": pa.string(),
    "attempt": pa.string(),
    "finished_at": pa.timestamp("us", tz="UTC"),
}
# Token counts of a dead letter, after the columns above; objects of older versions lack them.
TOKEN_FIELDS: dict[str, pa.DataType] = {
    name: RESULT_FIELDS[name] for name in ("prompt_tokens", "reasoning_tokens", "answer_tokens", "cached_tokens")
}
_PART_FIELDS: dict[str, pa.DataType] = {
    "first_page": pa.int32(),
    "last_page": pa.int32(),
    "reasoning": pa.large_string(),
    "reasoning_status": pa.string(),
    "answer": pa.large_string(),
}
DOCUMENT_FIELDS: dict[str, pa.DataType] = {
    "document_pages": pa.int32(),
    "document_parts": pa.list_(pa.struct(list(_PART_FIELDS.items()))),
    "document_truncated": pa.bool_(),
}
# Columns of results that objects of older versions lack; a merge with newer objects fills them with null.
NEWER_COLUMNS = frozenset({"document_truncated"})
NO_COLUMNS = pa.schema([])
RESERVED_COLUMNS = frozenset({"row_id", "sample", *RESULT_FIELDS, *ERROR_FIELDS, *DOCUMENT_FIELDS})
_NULLABLE = frozenset({"reasoning", "answer"})


def _schema(
    keys: dict[str, pa.DataType],
    carry: pa.Schema,
    rest: dict[str, pa.DataType],
    nullable: frozenset[str] = _NULLABLE,
) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in keys.items()]
    fields += [pa.field(name, carry.field(name).type) for name in carry.names]
    fields += [pa.field(name, kind, nullable=name in nullable) for name, kind in rest.items()]
    return pa.schema(fields, metadata={"magbatch.schema_version": SCHEMA_VERSION})


def results_schema(carry: pa.Schema, made: pa.Schema = NO_COLUMNS) -> pa.Schema:
    """The columns of `results/`: one record for each sample of each answered row.

    Args:
        carry: The carried input columns, with the types that the plan froze.
        made: Columns that are derived from the answers.
    """
    schema = _schema({"row_id": pa.string(), "sample": pa.int32()}, carry, RESULT_FIELDS)
    for position, one in enumerate(made, start=schema.get_field_index("answer") + 1):
        schema = schema.insert(position, one)
    return schema


def errors_schema(carry: pa.Schema, *, with_answer: bool = False) -> pa.Schema:
    """The columns of `errors/`: one record for each dead letter.

    Args:
        carry: The carried input columns, with the types that the plan froze.
        with_answer: Whether the job can reject answers; then the column `answer` holds the rejected answer.
    """
    fields = ERROR_FIELDS | ({"answer": pa.large_string()} if with_answer else {}) | TOKEN_FIELDS
    return _schema({"row_id": pa.string()}, carry, fields, _NULLABLE | TOKEN_FIELDS.keys())


def new_attempt(plan_id: str | None = None) -> str:
    """Make the token of one attempt at a shard. Tokens are unique, and sort by the start of their attempts.

    Args:
        plan_id: Id of the attempt's plan, which ends the token; None for plans of versions without ids.
    """
    token = f"{time.time_ns() // 1_000_000:011x}{secrets.token_hex(6)}"
    return token if plan_id is None else f"{token}{_OF_PLAN}{plan_id}"


RESULTS = "results"
ERRORS = "errors"
_OF_PLAN = "p"  # separates the attempt's token from its plan's id; both are hexadecimal
_NAME = re.compile(r"(results|errors)/(?:(\d{8})|r(\d{8})-(\d{8}))-([0-9a-z]+)-(\d{4,})\.n(\d+)\.parquet\Z")


@dataclass(frozen=True, slots=True, order=True)
class ObjectName:
    """The name of a committed object: `results/<shard>-<attempt>-<seq>.n<rows>.parquet`.

    The name of an object merged from several shards is `results/r<first>-<last>-<attempt>-<seq>.n<rows>.parquet`. The
    `r` lets one short listing find all merged objects.

    Attributes:
        kind: Kind of the object: `results` or `errors`.
        shard: Number of the shard, or of the first of several.
        attempt: Token of the attempt that wrote the object, with its plan's id. Attempts sort by their start.
        seq: Position among the objects of this attempt, from 0.
        rows: Number of input rows that the object finishes; with n samples a row it holds n times as many records.
        span: Number of shards that its rows may belong to, from `shard` on.
    """

    kind: str
    shard: int
    attempt: str
    seq: int
    rows: int
    span: int = 1

    def __str__(self) -> str:
        where = f"{self.shard:08d}" if self.span == 1 else f"r{self.shard:08d}-{self.shard + self.span - 1:08d}"
        return f"{self.kind}/{where}-{self.attempt}-{self.seq:04d}.n{self.rows}.parquet"

    @property
    def shards(self) -> range:
        """Shards that the object's rows may belong to."""
        return range(self.shard, self.shard + self.span)

    def is_foreign(self, plan_id: str | None) -> bool:
        """Whether the object was written for another plan; False if the object or the plan has no id."""
        return plan_id is not None and self.attempt.partition(_OF_PLAN)[2] not in ("", plan_id)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Parse an object's name; None if it is not the name of a committed object."""
        match = _NAME.match(name)
        if match is None:
            return None
        kind, shard, first, last, attempt, seq, rows = match.groups()
        span = 1 if shard is not None else int(last) - int(first) + 1
        if shard is None and span < 2:
            return None
        found = cls(kind, int(first if shard is None else shard), attempt, int(seq), int(rows), span)
        return (
            found if str(found) == name else None
        )  # an object has one name; other spellings of its numbers do not count

    @classmethod
    def of(cls, name: str) -> Self:
        """Parse the name of a committed object.

        Raises:
            ValueError: The name is not the name of a committed object.
        """
        found = cls.parse(name)
        if found is None:
            raise ValueError(f"{name!r} is not the name of a committed object")
        return found

    @staticmethod
    def prefix(kind: str, shard: int | None = None) -> str:
        """Prefix of the names of a shard's own objects; without a shard, prefix of merged objects."""
        return f"{kind}/r" if shard is None else f"{kind}/{shard:08d}-"
