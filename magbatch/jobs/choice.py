"""Choice of the rows that a retry asks again: dead letters, or rows whose reasoning was truncated."""

import difflib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from magbatch.errors import ErrorCode, SpecError
from magbatch.ledger.ledger import READERS, Ledger
from magbatch.ledger.manifest import Manifest
from magbatch.ledger.objects import damaged, read_columns
from magbatch.rows import ReasoningStatus
from magbatch.schema import ERRORS, RESULTS, ObjectName


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows that a retry asks again.

    Attributes:
        codes: Error codes of the chosen dead letters; empty for all dead letters.
        truncated: Whether to choose, instead of dead letters, rows with a sample whose reasoning ran out of tokens or
            only repeated itself.
    """

    codes: tuple[str, ...] = ()
    truncated: bool = False

    @classmethod
    def of(cls, where: list[str], only: str | None) -> "Choice":
        """The choice that a command line makes.

        Args:
            where: Values of `--where`.
            only: Value of `--only`.

        Raises:
            SpecError: A value is unknown, or both options are used.
        """
        for code in where:
            if code not in set(ErrorCode):
                close = difflib.get_close_matches(code, list(ErrorCode), n=1)
                hint = f"did you mean {close[0]}?" if close else f"the codes are {', '.join(ErrorCode)}"
                raise SpecError(f"--where {code}: no such error code; {hint}")
        if only not in {None, ReasoningStatus.TRUNCATED}:
            raise SpecError(f"--only {only}: only `truncated` can be chosen")
        if where and only:
            raise SpecError("--where chooses dead letters, --only truncated chooses answers: use one of them")
        return cls(tuple(dict.fromkeys(where)), only is not None)

    @property
    def kind(self) -> str:
        """Kind of the objects that hold these rows: `results` or `errors`."""
        return RESULTS if self.truncated else ERRORS

    def __str__(self) -> str:
        if self.truncated:
            return "rows whose reasoning was truncated"
        return "dead letters" + (f" with the code {' or '.join(self.codes)}" if self.codes else "")

    @property
    def stored(self) -> str:
        """The choice as a manifest holds it: the same words in all versions."""
        return "rows whose thinking was truncated" if self.truncated else str(self)

    @property
    def options(self) -> tuple[str, ...]:
        """The choice as options of a command line."""
        only = ("--only", str(ReasoningStatus.TRUNCATED)) if self.truncated else ()
        return (*(word for code in self.codes for word in ("--where", code)), *only)

    def rows(self, ledger: Ledger, manifest: Manifest) -> list[str]:
        """Row ids of the chosen rows of a complete job.

        Args:
            ledger: Output of the job.
            manifest: Manifest of the job.

        Raises:
            OutputError: An object of the manifest is missing or damaged.
        """
        counts, wanted = manifest.totals.by_code, self.codes
        if self.truncated:
            counts, wanted = manifest.totals.by_status, (str(ReasoningStatus.TRUNCATED),)
        if not any(count and (not wanted or name in wanted) for name, count in counts.items()):
            return []
        column = "reasoning_status" if self.truncated else "error_code"

        def chosen(name: ObjectName) -> list[str]:
            try:
                table = read_columns(ledger.store, name, ["row_id", column])
            except FileNotFoundError as error:
                raise damaged(ledger.store, f"{name}: in the manifest, but missing") from error
            if wanted:
                table = table.filter(pa.compute.is_in(table.column(column), pa.array(wanted)))
            row_ids: list[Any] = table.column("row_id").unique().to_pylist()
            return row_ids

        names = [name for name in filled_objects(manifest) if name.kind == self.kind]
        # Objects of many shards are large, so they are read one at a time.
        with ThreadPoolExecutor(1 if any(name.span > 1 for name in names) else READERS) as pool:
            return [row_id for found in pool.map(chosen, names) for row_id in found]


def filled_objects(manifest: Manifest) -> dict[ObjectName, str]:
    """Objects of a manifest that hold rows, each with its SHA-256."""
    return {entry.name: entry.sha256 for entry in manifest.objects if entry.rows}
