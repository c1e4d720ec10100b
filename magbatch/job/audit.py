"""The objects of a shard, held against its plan.

Two attempts at a shard (a zombie replica, a retry) may leave a row in two objects. The rule that
keeps one: an answer before a dead letter, then the attempt that began first. It depends on the
objects alone, so whoever applies it, and however often, comes to the same answer.
"""

import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.rows import ERRORS, RESULTS, PartName
from magbatch.storage import Store

_TOTALLED = ("prompt_tokens", "cached_tokens", "reasoning_tokens", "answer_tokens", "reasoning_status")


@dataclass(frozen=True, slots=True)
class Part:
    """A committed object as it was found.

    Attributes:
        name: Its name, which says shard, attempt and rows.
        records: Records in it.
        bytes: Its size.
        sha256: Of its bytes.
        row_ids: Of its rows, each once.
        table: Its narrow columns: what totals and summaries need.
    """

    name: PartName
    records: int
    bytes: int
    sha256: str
    row_ids: list[str]
    table: pa.Table

    def entry(self) -> dict[str, Any]:
        """Its line in the manifest."""
        return {
            "name": str(self.name),
            "rows": len(self.row_ids),
            "records": self.records,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


@dataclass(slots=True)
class ShardAudit:
    """What a shard's objects hold, held against its plan.

    Attributes:
        shard: The shard's number.
        keep: Each object that counts, with the rows of it that count.
        superseded: Objects of which nothing, or not everything, counts.
        missing: Planned rows that are in no object.
        unplanned: Rows that no plan knows, as `row id in object`.
        problems: Damaged objects, and names that say another count than their content.
        names: Every object of the shard.
    """

    shard: int
    names: list[PartName]
    keep: list[tuple[Part, list[str]]] = field(default_factory=list)
    superseded: list[PartName] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unplanned: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Totals:
    """Sums over what counts: rows are input rows, tokens are as the engine counted them.

    Attributes:
        answered: Rows with an answer.
        failed: Dead letters.
        records: Samples of the answered rows.
        graded: Records of rows whose right answer the input gives.
        right: Those of them whose answer it is.
        by_code: Dead letters by error code.
        by_status: Records by reasoning status.
    """

    answered: int = 0
    failed: int = 0
    records: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    graded: int = 0
    right: int = 0
    by_code: dict[str, int] = field(default_factory=dict)
    by_status: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, table: pa.Table, expected: str | None = None) -> None:
        """Count the records of one object.

        Args:
            kind: Results or errors.
            table: Its narrow columns.
            expected: The carried column with the right answers; then the table has `answer` too.
        """
        if kind == ERRORS:
            self.failed += table.num_rows
            _count(self.by_code, table.column("error_code"))
            return
        self.records += table.num_rows
        first = table.filter(pa.compute.equal(table.column("sample"), 0))  # prompts are paid once for all samples
        self.answered += first.num_rows
        self.prompt_tokens += _sum(first, "prompt_tokens")
        self.cached_tokens += _sum(first, "cached_tokens")
        self.reasoning_tokens += _sum(table, "reasoning_tokens")
        self.answer_tokens += _sum(table, "answer_tokens")
        _count(self.by_status, table.column("reasoning_status"))
        if expected is not None:
            self._grade(table.column("answer"), table.column(expected))

    def _grade(self, answers: pa.ChunkedArray, expected: pa.ChunkedArray) -> None:
        """Equal as text, but for the blanks around it."""
        wanted = pa.compute.utf8_trim_whitespace(expected.cast(pa.large_string()))
        given = pa.compute.fill_null(pa.compute.utf8_trim_whitespace(answers.cast(pa.large_string())), "")
        self.graded += len(wanted) - wanted.null_count
        self.right += int(pa.compute.sum(pa.compute.equal(given, wanted)).as_py() or 0)


def _sum(table: pa.Table, name: str) -> int:
    return int(pa.compute.sum(table.column(name)).as_py() or 0)


def _count(counts: dict[str, int], column: pa.ChunkedArray) -> None:
    for item in pa.compute.value_counts(column).to_pylist():
        counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]


def row_ids_of(table: pa.Table) -> list[str]:
    """The row ids in an object, each once."""
    return list(table.column("row_id").unique().to_pylist())


def read_part(store: Store, name: PartName, more: dict[str, list[str]]) -> Part | str:
    """Read an object whole.

    Args:
        store: The job's output.
        name: The object.
        more: Columns to keep in the part's table beside those that totals need, by kind.

    Returns:
        The part, or what is wrong with the object.
    """
    columns = ["row_id", "error_code"] if name.kind == ERRORS else ["row_id", "sample", *_TOTALLED]
    try:
        data = store.read(str(name))
        table = pq.read_table(io.BytesIO(data), columns=[*columns, *more.get(name.kind, [])], use_threads=False)
        row_ids = row_ids_of(table)
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError) as error:
        return f"{name}: cannot be read: {' '.join(str(error).split())}"
    if len(row_ids) != name.rows:
        return f"{name}: holds {len(row_ids)} rows, its name says {name.rows}"
    keys = ["row_id"] if name.kind == ERRORS else ["row_id", "sample"]
    if table.select(keys).group_by(keys).aggregate([]).num_rows != table.num_rows:
        return f"{name}: holds a row twice"
    return Part(name, table.num_rows, len(data), hashlib.sha256(data).hexdigest(), row_ids, table)


def audit_shard(shard: int, planned: list[str], parts: list[tuple[PartName, Part | str]]) -> ShardAudit:
    """Which objects of a shard count, by the rule that keeps one of two: see the module's docstring."""
    audit = ShardAudit(shard, [name for name, _ in parts])
    wanted = set(planned)
    owned: set[str] = set()
    for name, part in sorted(parts, key=lambda item: (item[0].kind != RESULTS, item[0].attempt, item[0].seq)):
        if isinstance(part, str):
            audit.problems.append(part)
            continue
        audit.unplanned += [f"row {row_id} in {name}" for row_id in part.row_ids if row_id not in wanted]
        mine = [row_id for row_id in part.row_ids if row_id in wanted and row_id not in owned]
        owned.update(mine)
        if len(mine) < len(part.row_ids):
            audit.superseded.append(name)
        if mine or not part.row_ids:
            audit.keep.append((part, mine))
    audit.missing = [row_id for row_id in planned if row_id not in owned]
    return audit
