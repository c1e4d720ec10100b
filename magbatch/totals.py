"""Sums over committed rows: one class for an object's footer, a replica's report, the metrics, and the manifest.

Every object's footer holds the totals of its own rows. So a resumed job knows its sums without reading rows again, and
the metrics at the end of a job equal its manifest.
"""

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import Grading
from magbatch.arrow_types import ChunkedArray
from magbatch.schema import ERRORS, TOKEN_FIELDS

FOOTER_KEY = b"magbatch.totals"
# Upper bounds of histogram buckets; a value that equals a bound is inside its bucket (Prometheus' `le`).
LATENCY_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
LENGTH_BOUNDS_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
INFINITE = "+Inf"

# Columns that totals are made from, in an object of results/ and of errors/.
COLUMNS = (
    "sample",
    "prompt_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "answer_tokens",
    "reasoning_status",
    "latency_s",
    "document_truncated",
)
ERROR_COLUMNS = ("error_code", *TOKEN_FIELDS)
T = TypeVar("T")


@dataclass(slots=True)
class Totals:
    """Sums over rows and tokens. Rows are input rows; the engine counts the tokens.

    Attributes:
        answered: Number of rows with an answer.
        failed: Number of dead letters.
        records: Number of samples of the answered rows.
        failed_generated: Number of dead letters with generated tokens; the sums of tokens include them.
        documents_truncated: Number of answered rows whose document was not shown to the model completely.
        graded: Number of records whose right answer the input gives; if samples vote, number of such rows.
        right: Number of graded records (or rows) with the right answer.
        squared_tokens: Sum of squared generated tokens over records and dead letters, for the spread of lengths.
        latency_ms: Sum of the latencies of the answered rows, each rounded to milliseconds.
        by_code: Number of dead letters by error code.
        by_status: Number of records by reasoning status.
        by_latency: Number of answered rows by the upper bound of their latency (`LATENCY_BOUNDS_S`, or `+Inf`).
        by_reasoning: Number of records, and of dead letters with generated tokens, by the upper bound of their
            reasoning tokens (`LENGTH_BOUNDS_TOKENS`, or `+Inf`).
        by_answer: Number of the same records and dead letters, by the upper bound of their answer tokens.
    """

    answered: int = 0
    failed: int = 0
    records: int = 0
    failed_generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    documents_truncated: int = 0
    graded: int = 0
    right: int = 0
    squared_tokens: int = 0
    latency_ms: int = 0
    by_code: dict[str, int] = field(default_factory=dict)
    by_status: dict[str, int] = field(default_factory=dict)
    by_latency: dict[str, int] = field(default_factory=dict)
    by_reasoning: dict[str, int] = field(default_factory=dict)
    by_answer: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows that are done."""
        return self.answered + self.failed

    @property
    def generated_tokens(self) -> int:
        """Sum of reasoning and answer tokens."""
        return self.reasoning_tokens + self.answer_tokens

    def add(self, kind: str, table: pa.Table, grading: Grading | None = None) -> None:
        """Count the records of one object.

        Args:
            kind: Kind of the object, `results` or `errors`.
            table: Columns `COLUMNS` (or `ERROR_COLUMNS`) of the object.
            grading: Comparison with the right answers, which needs its own columns in the table; None if there is none.
        """
        if kind == ERRORS:
            self.failed += table.num_rows
            _count(self.by_code, table.column("error_code"))
            if set(TOKEN_FIELDS) <= set(table.column_names):  # absent in objects of older versions
                self._add_tokens(table)
            return
        self.records += table.num_rows
        # All samples of a row share one prompt, which counts once.
        first = table.filter(pa.compute.equal(table.column("sample"), pa.scalar(0)))
        self.answered += first.num_rows
        self.prompt_tokens += _sum(first, "prompt_tokens")
        self.cached_tokens += _sum(first, "cached_tokens")
        latency = _array(first, "latency_s")
        self._add_generated(table)
        self.latency_ms += int(np.rint(latency * 1000).sum())
        _count(self.by_status, table.column("reasoning_status"))
        if "document_truncated" in table.column_names:  # absent in jobs without documents and in older objects
            self.documents_truncated += _sum(first, "document_truncated")
        bucket(self.by_latency, latency, LATENCY_BOUNDS_S)
        if grading is not None:
            graded, right = grading(table)
            self.graded += graded
            self.right += right

    def _add_tokens(self, letters: pa.Table) -> None:
        """Add the tokens of dead letters; null counts as 0."""
        self.prompt_tokens += _sum(letters, "prompt_tokens")
        self.cached_tokens += _sum(letters, "cached_tokens")
        names = ("reasoning_tokens", "answer_tokens")
        counts: dict[str, Any] = {name: pa.compute.fill_null(letters.column(name), pa.scalar(0)) for name in names}
        generated = pa.compute.greater(pa.compute.add(*counts.values()), pa.scalar(0))
        found = pa.table(counts).filter(generated)
        self.failed_generated += found.num_rows
        self._add_generated(found)

    def _add_generated(self, table: pa.Table) -> None:
        reasoning, answer = (_array(table, name).astype(np.int64) for name in ("reasoning_tokens", "answer_tokens"))
        self.reasoning_tokens += int(reasoning.sum())
        self.answer_tokens += int(answer.sum())
        self.squared_tokens += int(((reasoning + answer) ** 2).sum())
        bucket(self.by_reasoning, reasoning, LENGTH_BOUNDS_TOKENS)
        bucket(self.by_answer, answer, LENGTH_BOUNDS_TOKENS)

    def plus(self, other: Self, sign: int = 1) -> Self:
        """Add the sums of other totals; with `sign` -1, subtract them."""
        return summed(self, other, sign)

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any]) -> Self:
        """Read the sums of a manifest, or of another record with these names."""
        return cls(**known_fields(cls, manifest))

    @classmethod
    def of(cls, kind: str, table: pa.Table, grading: Grading | None = None) -> Self:
        """Count the records of one object; arguments are those of `add`."""
        totals = cls()
        totals.add(kind, table, grading)
        return totals

    def to_footer(self) -> dict[bytes, bytes]:
        """Metadata for an object's footer."""
        return {FOOTER_KEY: json.dumps({name: value for name, value in asdict(self).items() if value}).encode()}

    @classmethod
    def of_footer(cls, metadata: dict[bytes, bytes] | None) -> Self | None:
        """Read the metadata that `to_footer` made; None if a footer has no totals."""
        text = (metadata or {}).get(FOOTER_KEY)
        found = None if text is None else json.loads(text)
        return cls.of_manifest(found) if isinstance(found, dict) else None


def cumulative(counts: dict[str, int], bounds: tuple[float, ...]) -> list[tuple[str, int]]:
    """Turn counts by upper bound into Prometheus' cumulative buckets.

    Args:
        counts: Number of values by the upper bound of their bucket.
        bounds: Upper bounds, ascending.

    Returns:
        Pairs of upper bound and number of values at or below it; the last bound is `+Inf`.
    """
    found, sum_ = list[tuple[str, int]](), 0
    for bound in [*(str(bound) for bound in bounds), INFINITE]:
        sum_ += counts.get(bound, 0)
        found.append((bound, sum_))
    return found


def _sum(table: pa.Table, name: str) -> int:
    return int(pa.compute.sum(table.column(name)).as_py() or 0)


def _array(table: pa.Table, name: str) -> "np.ndarray[Any, Any]":
    values: np.ndarray[Any, Any] = table.column(name).to_numpy()
    return values


def _count(counts: dict[str, int], column: ChunkedArray) -> None:
    counted: Any = pa.compute.value_counts(column)  # an array of structs
    for item in counted.to_pylist():
        counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]


def bucket(counts: dict[str, int], values: "np.ndarray[Any, Any] | list[float]", bounds: tuple[float, ...]) -> None:
    """Count values into the buckets of their upper bounds.

    Args:
        counts: Number of values by upper bound; changed in place.
        values: Values, float of shape (values,).
        bounds: Upper bounds, ascending.
    """
    names = [*(str(bound) for bound in bounds), INFINITE]
    indices, found = np.unique(np.searchsorted(bounds, values, side="left"), return_counts=True)
    for index, count in zip(indices.tolist(), found.tolist(), strict=True):
        counts[names[index]] = counts.get(names[index], 0) + count


def summed(one: T, other: T, sign: int = 1) -> T:
    """Add two records of one dataclass, field by field.

    Numbers are added, counts by key are added key by key, lists are joined, and records within are added in turn.
    A count that becomes 0 is left out.

    Example: `summed(Totals(failed=1, by_code={"a": 1}), Totals(failed=2, by_code={"a": 1, "b": 1}))` is
    `Totals(failed=3, by_code={"a": 2, "b": 1})`.

    Args:
        one: First record, any dataclass.
        other: The second record, of the same class.
        sign: 1 adds the second record; -1 takes it away from the first, which must have no lists.
    """
    names = [item.name for item in fields(one)]  # type: ignore[arg-type]
    return type(one)(**{name: _summed_value(getattr(one, name), getattr(other, name), sign) for name in names})


def _summed_value(one: Any, other: Any, sign: int) -> Any:
    if isinstance(one, dict):
        both = {key: one.get(key, 0) + sign * other.get(key, 0) for key in {**one, **other}}
        return {key: count for key, count in both.items() if count}
    if is_dataclass(one):
        return summed(one, other, sign)
    if isinstance(one, list):
        return [*one, *other]
    return one + sign * other


def known_fields(kind: type[Any], record: dict[str, Any]) -> dict[str, Any]:
    """Select the values of a record for which a dataclass has fields; a newer version may have written more.

    Args:
        kind: Dataclass whose fields count.
        record: Values by field name.
    """
    return {one.name: record[one.name] for one in fields(kind) if one.name in record}
