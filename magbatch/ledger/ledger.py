"""The rows that are done, read from the committed objects alone.

The data objects are the checkpoint: a row is done exactly if its row id is in a visible object below `results/` or
`errors/`. No second file can disagree. The manifest is written last; it names the objects that count and makes the
job complete.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from operator import attrgetter
from typing import Any

import numpy as np

from magbatch.errors import OutputError
from magbatch.ledger.objects import read_columns, read_totals, row_ids_of
from magbatch.ledger.output import Output
from magbatch.ledger.units import Unit, units
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, ObjectName
from magbatch.spec import is_remote
from magbatch.totals import Totals

FOOTER_READERS = 32  # footers read at once: each is a small request
READERS = 8  # objects read at once: object storage answers in tens of ms, so a few hide the latency


class Ledger(Output):
    """The output of one job with the rows that are done; its arguments are those of `Output`."""

    _filled: frozenset[int] = frozenset()  # shards that had objects at the last listing of a disk
    _listed_at = -math.inf  # monotonic time of that listing (seconds)

    # Names of objects

    def objects(self, kind: str, shard: int | None = None) -> Iterator[ObjectName]:
        """Names of the job's objects of a kind, ordered by first shard.

        Args:
            kind: `results` or `errors`.
            shard: Shard whose rows the objects may hold; None for all objects.
        """
        return (name for name in self._every(kind, shard) if not self._is_foreign(name))

    def object_names(self) -> list[ObjectName]:
        """Names of all visible objects of both kinds, including objects of other plans."""
        return [name for kind in (RESULTS, ERRORS) for name in self._every(kind)]

    def units(self, plan: Plan, only: Collection[ObjectName] | None = None) -> Iterator[Unit]:
        """Units of the output, including objects of other plans.

        Args:
            plan: Plan of the job, for its number of shards.
            only: Objects to take; None for all.
        """
        both = merge(*(self._every(kind) for kind in (RESULTS, ERRORS)), key=attrgetter("shard"))
        return units((name for name in both if only is None or name in only), plan.num_shards)

    def _is_foreign(self, name: ObjectName) -> bool:
        return name.is_foreign(self.plan_id)

    def _every(self, kind: str, shard: int | None = None) -> Iterator[ObjectName]:
        """The objects that `objects` lists, and those of other plans."""
        merged = sorted(self._listed(ObjectName.prefix(kind)), key=attrgetter("shard"))
        if shard is not None:
            yield from self._listed(ObjectName.prefix(kind, shard))
            yield from (name for name in merged if shard in name.shards)
            return
        single = (name for name in self._listed(f"{kind}/") if name.span == 1)
        yield from merge(single, merged, key=attrgetter("shard"))

    def _listed(self, prefix: str, after: str = "") -> Iterator[ObjectName]:
        names = (ObjectName.parse(item.name) for item in self.store.list(prefix, after))
        return (name for name in names if name is not None)

    # Rows that are done

    def done_rows(self, shard: int, quiet_since: float = math.inf) -> frozenset[str]:
        """Row ids of a shard that are in a visible object.

        Args:
            shard: Shard number.
            quiet_since: Monotonic time (seconds) after which no new object of the shard can appear. One listing of a
                disk made later than this tells for every such shard whether it has objects.

        Raises:
            OutputError: An object is damaged.
        """
        if not self._may_have_rows(shard, quiet_since):
            return frozenset()
        return self._rows_in(shard, [name for kind in (RESULTS, ERRORS) for name in self.objects(kind, shard)])

    def look_up(self, shards: Collection[int]) -> Callable[[int], frozenset[str]]:
        """List the objects of some shards once; the shards should lie close together.

        Everything between the first and the last shard is listed. Objects are read when the result is called.

        Returns:
            A function from one of these shards to its row ids that are in a visible object.
        """
        found: dict[int, list[ObjectName]] = {shard: [] for shard in shards}
        first, last = min(found, default=0), max(found, default=-1)
        for kind in (RESULTS, ERRORS) if found else ():
            for name in self._listed(ObjectName.prefix(kind)):
                if self._is_foreign(name):
                    continue
                for shard in range(max(first, name.shards.start), min(last + 1, name.shards.stop)):
                    found.get(shard, []).append(name)
            for name in self._listed(f"{kind}/", ObjectName.prefix(kind, first)):
                if name.span > 1 or name.shard > last:  # names of merged objects sort after all other names
                    break
                if not self._is_foreign(name):
                    found.get(name.shard, []).append(name)
        return lambda shard: self._rows_in(shard, found[shard])

    def done_counts(self, plan: Plan) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Count the rows of each shard that are done, from one listing of names.

        Names give exact counts for a shard that a single attempt has written. If two attempts wrote, a row may be
        counted twice; the objects of those few shards are read.

        Returns:
            int64 array (shards,): rows done in each shard.
        """
        counts, sizes = np.zeros(plan.num_shards, dtype=np.int64), plan.shard_sizes
        unsure: list[Unit] = []
        for shards, there in self.units(plan):
            if shards.start >= plan.num_shards:
                break
            names = [name for name in there if not name.is_foreign(plan.id)]
            rows, planned = sum(name.rows for name in names), int(sizes[shards.start : shards.stop].sum())
            one_attempt = len({name.attempt for name in names}) <= 1
            if one_attempt and rows == planned:
                counts[shards.start : shards.stop] = sizes[shards.start : shards.stop]
            elif one_attempt and rows < planned and len(shards) == 1:
                counts[shards.start] = rows
            else:
                unsure.append(Unit(shards, names))
        with ThreadPoolExecutor(READERS) as pool:
            to_read = [name for unit in unsure for name in unit.names]
            found = dict(zip(to_read, pool.map(self._row_ids, to_read), strict=True))
        for shards, names in unsure:
            done = {row_id for name in names for row_id in found[name]}
            for shard in range(shards.start, min(shards.stop, plan.num_shards)):
                counts[shard] = sum(row_id in done for row_id in plan.shard(shard).row_ids())
        return counts

    def distinct_rows(self, kind: str) -> int:
        """Number of different rows in the objects of a kind; their row ids are read."""
        with ThreadPoolExecutor(READERS) as pool:
            return len({row_id for found in pool.map(self._row_ids, self.objects(kind)) for row_id in found})

    def totals(self, names: list[ObjectName]) -> Totals:
        """Sum the totals of some objects, read from their footers; a row in two objects counts twice."""

        def of_object(name: ObjectName) -> Totals:
            try:
                return read_totals(self.store, name)
            except (FileNotFoundError, OutputError):  # moved since the listing; or damaged, which `finalise` reports
                return Totals()

        sums = Totals()
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            for totals in pool.map(of_object, names):
                sums = sums.plus(totals)
        return sums

    def _may_have_rows(self, shard: int, quiet_since: float) -> bool:
        """Whether a shard has objects; on a disk, one listing answers for many shards.

        Listing one shard on a disk costs as much as listing the whole folder.
        """
        now = time.monotonic()
        if is_remote(self.path) or now <= quiet_since:
            return True
        if self._listed_at <= quiet_since:
            self._filled = frozenset(shard for name in self.object_names() for shard in name.shards)
            self._listed_at = now
        return shard in self._filled

    def _rows_in(self, shard: int, names: list[ObjectName]) -> frozenset[str]:
        done = frozenset(row_id for name in names for row_id in self._row_ids(name))
        if all(name.span == 1 for name in names):
            return done
        plan = self.plan()  # merged objects hold rows of other shards too
        return done & frozenset(plan.shard(shard).row_ids()) if plan is not None else done

    def _row_ids(self, name: ObjectName) -> list[str]:
        try:
            return row_ids_of(read_columns(self.store, name, ["row_id"]))
        except FileNotFoundError:  # moved since the listing: its rows are open
            return []
