"""The objects of a shard, or of a few that merged objects tie together, held against the plan.

Two attempts at a shard (a zombie replica, a retry) may leave a row in two objects. The rule that
keeps one: an answer before a dead letter, then the attempt that began first. It depends on the
objects alone, so whoever applies it, and however often, comes to the same answer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute

from magbatch.job.parts import Part
from magbatch.rows import ERRORS, RESULTS, PartName


def units(parts: Iterable[PartName], num_shards: int) -> Iterator[tuple[range, list[PartName]]]:
    """What can be looked at on its own: a shard with its objects, or the shards that merged objects tie together.

    Args:
        parts: Of both kinds, in the order of their first shards.
        num_shards: Shards of the plan. Each is in one unit, whether it has objects or not; then come
            units of shards that no plan knows.
    """
    begin, end, found = 0, 0, list[PartName]()
    for part in parts:
        if part.shard < end:
            found.append(part)
            end = max(end, part.shards.stop)
            continue
        if found:
            yield range(begin, end), found
        for shard in range(end, min(part.shard, num_shards)):
            yield range(shard, shard + 1), []
        begin, end, found = part.shard, part.shards.stop, [part]
    if found:
        yield range(begin, end), found
    for shard in range(end, num_shards):
        yield range(shard, shard + 1), []


@dataclass(slots=True)
class Audit:
    """What the objects of a unit hold, held against the plan.

    Attributes:
        shards: The unit's shards.
        keep: Each object that counts, with the rows of it that count.
        superseded: Objects of which nothing, or not everything, counts.
        missing: Planned rows that are in no object.
        unplanned: Rows that no plan knows, as `row id in object`.
        problems: Damaged objects, and names that say another count than their content.
        names: Every object of the unit.
    """

    shards: range
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

    def plus(self, other: Self, sign: int = 1) -> Self:
        """The sums of both; with sign -1, what is left without the other's."""
        sums: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                both = {key: mine.get(key, 0) + sign * theirs.get(key, 0) for key in {**mine, **theirs}}
                sums[name] = {key: count for key, count in both.items() if count}
            else:
                sums[name] = mine + sign * theirs
        return type(self)(**sums)

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any]) -> Self:
        """The sums that a manifest holds."""
        return cls(**{one.name: manifest[one.name] for one in fields(cls) if one.name in manifest})

    @classmethod
    def of(cls, part: Part, expected: str | None) -> Self:
        """The sums over one object; arguments as for `add`."""
        totals = cls()
        totals.add(part.name.kind, part.table, expected)
        return totals

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


def audit_unit(shards: range, planned: dict[str, int], parts: list[tuple[PartName, Part | str]]) -> Audit:
    """Which objects of a unit count, by the rule that keeps one of two: see the module's docstring.

    Args:
        shards: The unit's shards.
        planned: Its rows, in the order of the plan, and the shard of each.
        parts: Its objects as they were found.
    """
    audit = Audit(shards, [name for name, _ in parts])
    owned: set[str] = set()
    for name, part in sorted(parts, key=lambda item: (item[0].kind != RESULTS, item[0].attempt, item[0].seq)):
        if isinstance(part, str):
            audit.problems.append(part)
            continue
        known = {row_id for row_id in part.row_ids if planned.get(row_id, -1) in name.shards}
        audit.unplanned += [f"row {row_id} in {name}" for row_id in part.row_ids if row_id not in known]
        mine = [row_id for row_id in part.row_ids if row_id in known and row_id not in owned]
        owned.update(mine)
        if len(mine) < len(part.row_ids):
            audit.superseded.append(name)
        if mine or not part.row_ids:
            audit.keep.append((part, mine))
    audit.missing = [row_id for row_id in planned if row_id not in owned]
    return audit
