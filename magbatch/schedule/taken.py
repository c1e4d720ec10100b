"""The files that complete runs have in their plans, in one object: an index that can be made again from the plans.

A run's files are taken from the index only while the record of its end is the one that the index was made for. So an
index that is old, damaged or gone costs reading plans, and never changes the answer.
"""

import io
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.storage import Store

INDEX = "_magbatch/schedule/taken.parquet"
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
    """What is known of complete runs.

    Attributes:
        table: A record for each input file of each run; one without path for a run that has none.
    """

    table: pa.Table

    @classmethod
    def load(cls, store: Store, ends: dict[str, str]) -> "TakenIndex":
        """The index, as far as it holds.

        Args:
            store: The schedule's output.
            ends: Tag of the record of its end, by the name of each complete run's tick.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            data = io.BytesIO(store.read(INDEX))
            table = pq.read_table(data, page_checksum_verification=True).cast(_COLUMNS)
        except (FileNotFoundError, pa.ArrowException, OSError, ValueError, KeyError):  # none, or damaged: made again
            return cls(_COLUMNS.empty_table())
        runs = table.select(["tick", "record"]).group_by(["tick", "record"]).aggregate([]).to_pylist()
        held = [run["tick"] for run in runs if ends.get(run["tick"]) == run["record"]]
        if len(held) == len(runs):
            return cls(table)
        return cls(table.filter(pa.compute.is_in(table.column("tick").cast(pa.string()), pa.array(held, pa.string()))))

    def ticks(self) -> set[str]:
        """Names of the ticks that it knows."""
        return set(self.table.column("tick").unique().to_pylist())

    def files(self) -> InputFiles:
        """Of all runs that it knows."""
        found = self.table.filter(pa.compute.is_valid(self.table.column("path")))
        return set(zip(*(found.column(name).to_pylist() for name in ("path", "size", "tag")), strict=True))

    def extended(self, runs: dict[str, InputFiles], ends: dict[str, str]) -> "TakenIndex":
        """With more runs; arguments as for `load`."""
        records = [
            {"tick": tick, "record": ends[tick]} | file
            for tick, files in runs.items()
            for file in [{"path": path, "size": size, "tag": tag} for path, size, tag in sorted(files)] or [{}]
        ]
        return TakenIndex(
            pa.concat_tables([self.table, pa.Table.from_pylist(records, schema=_COLUMNS)]).unify_dictionaries()
        )

    def store(self, store: Store) -> None:
        """Put it in the place of the one before."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd", write_page_checksum=True)
        store.write(INDEX, sink.getvalue())
