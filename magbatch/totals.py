"""Sums over committed rows: one class for an object's footer, a replica's report, the metrics, and the manifest.

Every object carries the totals of its own rows in its footer, so that the sums of a job that is resumed are
known without reading its rows again, and a metric at the end of a job is what its manifest says.
"""

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import Grading
from magbatch.schema import ERRORS, TOKEN_FIELDS

FOOTER_KEY = b"magbatch.totals"
# Upper bounds, as Prometheus' `le`: a value equal to one is within it.
LATENCY_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
LENGTH_BOUNDS_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
INFINITE = "+Inf"

# What totals need of an object of results/, beside the row id; of one of errors/, `error_code` and the tokens.
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
    """Sums over what counts: rows are input rows, tokens are as the engine counted them.

    Attributes:
        answered: Rows with an answer.
        failed: Dead letters.
        records: Samples of the answered rows.
        failed_generated: Dead letters that the engine generated tokens for. All sums of tokens have these rows too.
        documents_truncated: Answered rows of whose document something was shown to no one.
        graded: Records of rows whose right answer the input gives; where samples vote, the rows.
        right: Those of them whose answer it is.
        squared_tokens: Sum of the squares of the generated tokens of each record, and of each dead letter: how much
            lengths differ.
        latency_ms: Sum of the latencies of the answered rows, each in whole milliseconds.
        by_code: Dead letters by error code.
        by_status: Records by reasoning status.
        by_latency: Answered rows by the upper bound of their latency (`LATENCY_BOUNDS_S`, or `+Inf`).
        by_reasoning: Records, and dead letters that tokens were generated for, by the upper bound of their reasoning
            tokens (`LENGTH_BOUNDS_TOKENS`, or `+Inf`).
        by_answer: The same by the upper bound of their answer tokens.
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
        """Rows that are done."""
        return self.answered + self.failed

    @property
    def generated_tokens(self) -> int:
        """Reasoning and answer."""
        return self.reasoning_tokens + self.answer_tokens

    def add(self, kind: str, table: pa.Table, grading: Grading | None = None) -> None:
        """Count the records of one object.

        Args:
            kind: Results or errors.
            table: Its narrow columns.
            grading: What is held against the right answers; then the table has its columns too.
        """
        if kind == ERRORS:
            self.failed += table.num_rows
            _count(self.by_code, table.column("error_code"))
            if set(TOKEN_FIELDS) <= set(table.column_names):  # an object of an older version has none
                self._add_tokens(table)
            return
        self.records += table.num_rows
        first = table.filter(pa.compute.equal(table.column("sample"), 0))  # prompts are paid once for all samples
        self.answered += first.num_rows
        self.prompt_tokens += _sum(first, "prompt_tokens")
        self.cached_tokens += _sum(first, "cached_tokens")
        latency = _array(first, "latency_s")
        self._add_generated(table)
        self.latency_ms += int(np.rint(latency * 1000).sum())
        _count(self.by_status, table.column("reasoning_status"))
        if "document_truncated" in table.column_names:  # a job with documents, by this version
            self.documents_truncated += _sum(first, "document_truncated")
        bucket(self.by_latency, latency, LATENCY_BOUNDS_S)
        if grading is not None:
            graded, right = grading(table)
            self.graded += graded
            self.right += right

    def _add_tokens(self, letters: pa.Table) -> None:
        """The tokens of dead letters; null counts as none."""
        self.prompt_tokens += _sum(letters, "prompt_tokens")
        self.cached_tokens += _sum(letters, "cached_tokens")
        counts = {name: pa.compute.fill_null(letters.column(name), 0) for name in ("reasoning_tokens", "answer_tokens")}
        generated = pa.compute.greater(pa.compute.add(*counts.values()), 0)
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
        """The sums of both; with sign -1, what is left without the other's."""
        return summed(self, other, sign)

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any]) -> Self:
        """The sums that a manifest, or another record with these names, holds."""
        return cls(**known_fields(cls, manifest))

    @classmethod
    def of(cls, kind: str, table: pa.Table, grading: Grading | None = None) -> Self:
        """The sums over one object; arguments as for `add`."""
        totals = cls()
        totals.add(kind, table, grading)
        return totals

    def to_footer(self) -> dict[bytes, bytes]:
        """As an object's footer holds them."""
        return {FOOTER_KEY: json.dumps({name: value for name, value in asdict(self).items() if value}).encode()}

    @classmethod
    def of_footer(cls, metadata: dict[bytes, bytes] | None) -> Self | None:
        """What `to_footer` gave; None where a footer has none."""
        text = (metadata or {}).get(FOOTER_KEY)
        found = None if text is None else json.loads(text)
        return cls.of_manifest(found) if isinstance(found, dict) else None


def cumulative(counts: dict[str, int], bounds: tuple[float, ...]) -> list[tuple[str, int]]:
    """Counts by upper bound as Prometheus has them: each bucket holds what is at or below its bound; the last all."""
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


def _count(counts: dict[str, int], column: pa.ChunkedArray) -> None:
    for item in pa.compute.value_counts(column).to_pylist():
        counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]


def bucket(counts: dict[str, int], values: "np.ndarray[Any, Any] | list[float]", bounds: tuple[float, ...]) -> None:
    """Add values to the counts of their upper bounds."""
    names = [*(str(bound) for bound in bounds), INFINITE]
    places, found = np.unique(np.searchsorted(bounds, values, side="left"), return_counts=True)
    for place, count in zip(places.tolist(), found.tolist(), strict=True):
        counts[names[place]] = counts.get(names[place], 0) + count


def summed(one: T, other: T, sign: int = 1) -> T:
    """Add two records of one dataclass, field by field.

    Numbers are added, counts by key are added key by key, lists are joined, and records within are added in turn.
    A count that becomes 0 is left out.

    Example: `summed(Totals(failed=1, by_code={"a": 1}), Totals(failed=2, by_code={"a": 1, "b": 1}))` is
    `Totals(failed=3, by_code={"a": 2, "b": 1})`.

    Args:
        one: The first record.
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
    """What a record holds of a dataclass; what a newer version has written beside it is left out.

    Args:
        kind: The dataclass.
        record: Values by the names of fields.
    """
    return {one.name: record[one.name] for one in fields(kind) if one.name in record}
