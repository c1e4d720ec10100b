"""Index of the input files that complete runs have taken: one object, which can be rebuilt from the plans.

A run's entry counts only if the record of the run's end is still the indexed one. So an old, damaged or missing index
only means that more plans are read; it never changes the answer.
"""

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.ledger.layout import TAKEN
from magbatch.storage import Store

_COLUMNS = pa.schema(
    [
        ("tick", pa.dictionary(pa.int32(), pa.string())),
        ("record", pa.dictionary(pa.int32(), pa.string())),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("tag", pa.string()),
    ]
)
InputFiles = set[tuple[str, int, str]]  # path, size (bytes), tag


@dataclass(frozen=True)
class TakenIndex:
    """Input files of complete runs.

    Attributes:
        table: A record for each input file of each run; a run without files has one record whose path is null.
    """

    table: pa.Table

    @classmethod
    def load(cls, store: Store, ends: dict[str, str]) -> "TakenIndex":
        """Read the index, without runs whose end record has changed since.

        Args:
            store: Store of the schedule's output.
            ends: Name of each complete tick, to the tag of the record of its end.

        Raises:
            StorageError: The index cannot be read.
        """
        try:
            data = io.BytesIO(store.read(TAKEN))
            table = pq.read_table(data, page_checksum_verification=True).cast(_COLUMNS)
        except (FileNotFoundError, pa.ArrowException, OSError, ValueError, KeyError):  # missing or damaged: rebuilt
            return cls(_COLUMNS.empty_table())
        runs = table.select(["tick", "record"]).group_by(["tick", "record"]).aggregate([]).to_pylist()
        held = [run["tick"] for run in runs if ends.get(run["tick"]) == run["record"]]
        if len(held) == len(runs):
            return cls(table)
        return cls(table.filter(pa.compute.is_in(table.column("tick").cast(pa.string()), pa.array(held, pa.string()))))

    def ticks(self) -> set[str]:
        """Names of the indexed ticks."""
        ticks: list[Any] = self.table.column("tick").unique().to_pylist()
        return set(ticks)

    def files(self) -> InputFiles:
        """Files of all indexed runs."""
        found = self.table.filter(pa.compute.is_valid(self.table.column("path")))
        return set(zip(*(found.column(name).to_pylist() for name in ("path", "size", "tag")), strict=True))

    def extended(self, runs: dict[str, InputFiles], ends: dict[str, str]) -> "TakenIndex":
        """Index with more runs.

        Args:
            runs: Name of each new tick, to its files.
            ends: Name of each complete tick, to the tag of the record of its end.
        """
        records = [
            {"tick": tick, "record": ends[tick]} | file
            for tick, files in runs.items()
            for file in [{"path": path, "size": size, "tag": tag} for path, size, tag in sorted(files)] or [{}]
        ]
        return TakenIndex(
            pa.concat_tables([self.table, pa.Table.from_pylist(records, schema=_COLUMNS)]).unify_dictionaries()
        )

    def store(self, store: Store) -> None:
        """Write the index over the old one."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd", write_page_checksum=True)
        store.write(TAKEN, sink.getvalue())
