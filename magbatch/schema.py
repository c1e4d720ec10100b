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
# Of a dead letter, after those; an object of an older version has none of them.
TOKEN_FIELDS: dict[str, pa.DataType] = {
    name: RESULT_FIELDS[name] for name in ("prompt_tokens", "reasoning_tokens", "answer_tokens", "cached_tokens")
}
_PART_FIELDS = {
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
# Of results; an object of an older version has none of them, and null where it is merged with newer ones.
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
        made: The columns that the job has its answers made into.
    """
    schema = _schema({"row_id": pa.string(), "sample": pa.int32()}, carry, RESULT_FIELDS)
    for position, one in enumerate(made, start=schema.get_field_index("answer") + 1):
        schema = schema.insert(position, one)
    return schema


def errors_schema(carry: pa.Schema, *, with_answer: bool = False) -> pa.Schema:
    """The columns of `errors/`: one record for each dead letter.

    Args:
        carry: The carried input columns, with the types that the plan froze.
        with_answer: The job may refuse answers: then `answer` holds the refused one.
    """
    fields = ERROR_FIELDS | ({"answer": pa.large_string()} if with_answer else {}) | TOKEN_FIELDS
    return _schema({"row_id": pa.string()}, carry, fields, _NULLABLE | TOKEN_FIELDS.keys())


def new_attempt(plan_id: str | None = None) -> str:
    """A token for one attempt at a shard: unique, and sorted by the time it began.

    Args:
        plan_id: Id of the plan that the attempt works for, which the token ends with; None for plans without one.
    """
    token = f"{time.time_ns() // 1_000_000:011x}{secrets.token_hex(6)}"
    return token if plan_id is None else f"{token}{_OF_PLAN}{plan_id}"


RESULTS = "results"
ERRORS = "errors"
_OF_PLAN = "p"  # between an attempt's own token and its plan's id, which are hexadecimal
_PART = re.compile(r"(results|errors)/(?:(\d{8})|r(\d{8})-(\d{8}))-([0-9a-z]+)-(\d{4,})\.n(\d+)\.parquet\Z")


@dataclass(frozen=True, slots=True, order=True)
class ObjectName:
    """The name of a committed object: `results/<shard>-<attempt>-<seq>.n<rows>.parquet`.

    One that was merged of several shards' objects is `results/r<first>-<last>-<attempt>-<seq>.n<rows>.parquet`:
    by the `r`, one short listing finds all of those.

    Attributes:
        kind: `results` or `errors`.
        shard: The number in the plan of the shard, or of the first of several.
        attempt: Which handling of the shard wrote it, and for which plan. Attempts sort by the time they began.
        seq: Position among the objects of this attempt.
        rows: Input rows finished by it (with n samples a row it holds n times as many records).
        span: How many shards its rows may be of, from `shard` on.
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
        """The shards that its rows may be of."""
        return range(self.shard, self.shard + self.span)

    def is_foreign(self, plan_id: str | None) -> bool:
        """Whether the object was written for another plan than this; an object or a plan without an id never tells."""
        return plan_id is not None and self.attempt.partition(_OF_PLAN)[2] not in ("", plan_id)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The part behind an object's name, or None where the name is not a part's."""
        match = _PART.match(name)
        if match is None:
            return None
        kind, shard, first, last, attempt, seq, rows = match.groups()
        span = 1 if shard is not None else int(last) - int(first) + 1
        if shard is None and span < 2:
            return None
        part = cls(kind, int(first if shard is None else shard), attempt, int(seq), int(rows), span)
        return part if str(part) == name else None  # another spelling of a number would be read by another name

    @classmethod
    def of(cls, name: str) -> Self:
        """As `parse`, for a name that is one."""
        part = cls.parse(name)
        if part is None:
            raise ValueError(f"{name!r} is not the name of a part")
        return part

    @staticmethod
    def prefix(kind: str, shard: int | None = None) -> str:
        """What the names of a shard's own objects begin with; without a shard, those of merged ones."""
        return f"{kind}/r" if shard is None else f"{kind}/{shard:08d}-"
