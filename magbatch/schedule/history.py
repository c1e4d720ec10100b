"""History of a schedule, from its output alone: which ticks started and ended, and which files their runs took.

```
OUTPUT/_magbatch/schedule/since.json                time when a scheduler first saw the schedule
OUTPUT/_magbatch/schedule/<tick>.json               the tick has started; created once
OUTPUT/_magbatch/schedule/<tick>.complete.json      its run is complete
OUTPUT/_magbatch/schedule/<tick>.empty.json         the tick had no new files
OUTPUT/_magbatch/schedule/taken.parquet             index of the files of complete runs, which saves reading their plans
OUTPUT/runs/<tick>/                                 the run: an ordinary output of a job
```

The plan of a run is the claim on its files. A plan, too, is created once, so a tick never has two plans. The record of
an end repeats what plan and manifest say, so it may be written late, twice, or not at all.
"""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from magbatch.errors import StorageError
from magbatch.ledger.layout import PLAN, RUNS, SINCE, TICKS
from magbatch.ledger.ledger import Ledger
from magbatch.plan.plan import Plan
from magbatch.schedule.taken import TakenIndex
from magbatch.schedule.ticks import tick_name, tick_of
from magbatch.storage import Store, open_store

PLAN_READERS = 16  # plans read at once: they are small, and each read waits for the network
BEGUN, COMPLETE, EMPTY = "begun", "complete", "empty"


@dataclass(frozen=True)
class Ticks:
    """Ticks recorded in an output.

    Attributes:
        states: Tick (UTC) to `begun`, `complete` or `empty`, sorted by tick.
    """

    states: dict[datetime, str]

    @property
    def last(self) -> datetime | None:
        """The latest tick; None before the first."""
        return max(self.states, default=None)

    @property
    def open(self) -> list[datetime]:
        """Ticks that started and have not ended, oldest first."""
        return [tick for tick, state in self.states.items() if state == BEGUN]


class History:
    """Records of one schedule.

    Args:
        output: The spec's output.path: a local directory or s3:// prefix.
        quick: Whether a store that does not answer within seconds raises an error. If not, calls wait for it.
    """

    def __init__(self, output: str, *, quick: bool = False) -> None:
        self.output = output.rstrip("/")
        self._store: Store = open_store(self.output, quick=quick)

    def run_path(self, tick: datetime) -> str:
        """Output of a tick's run."""
        return f"{self.output}/{RUNS}/{tick_name(tick)}"

    def ticks(self) -> Ticks:
        """The recorded ticks, from one listing of names.

        Raises:
            StorageError: The output cannot be listed.
        """
        states: dict[datetime, str] = {}
        for tick, end, _ in self._records():
            if end or tick not in states:
                states[tick] = end if end in {COMPLETE, EMPTY} else BEGUN
        return Ticks(dict(sorted(states.items())))

    def _records(self) -> Iterator[tuple[datetime, str, str]]:
        """Yield tick, end and tag of each record; the end is empty for the record of a start."""
        for item in self._store.list(TICKS):
            name, _, end = item.name.removeprefix(TICKS).removesuffix(".json").partition(".")
            tick = tick_of(name)
            if tick is not None:
                yield tick, end, item.tag

    def since(self, now: datetime) -> datetime:
        """Time when a scheduler first saw this schedule; recorded as now if none has.

        Earlier ticks do not count as missed.

        Args:
            now: Current time (UTC).
        """
        self._store.create(SINCE, _record(at=now.isoformat()))
        return self.seen() or now

    def seen(self) -> datetime | None:
        """Time when a scheduler first saw this schedule; None if none has, or the record is damaged."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            return datetime.fromisoformat(json.loads(self._store.read(SINCE))["at"]).astimezone(UTC)
        return None

    def begin(self, tick: datetime) -> bool:
        """Record that a tick starts. If several schedulers try, exactly one gets True."""
        return self._store.create(f"{TICKS}{tick_name(tick)}.json", _record(tick=tick.isoformat()))

    def end(self, tick: datetime, state: str, **facts: Any) -> None:
        """Record the end of a tick.

        Args:
            tick: The tick (UTC).
            state: `complete` or `empty`.
            facts: JSON values to keep with it: counts of files and rows.
        """
        name = f"{TICKS}{tick_name(tick)}.{state}.json"
        self._store.write(name, _record(tick=tick.isoformat(), **facts))

    def facts(self, tick: datetime, state: str) -> dict[str, Any]:
        """Facts kept with the end of a tick; empty if its record is missing or damaged."""
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(self._store.read(f"{TICKS}{tick_name(tick)}.{state}.json"))
            return found if isinstance(found, dict) else {}
        return {}

    def plan(self, tick: datetime) -> Plan | None:
        """Frozen plan of a tick's run; None if it has none yet."""
        return Ledger(self.run_path(tick)).plan()

    def claim(self, tick: datetime, plan: Plan) -> Plan:
        """Freeze a tick's plan, unless it has one.

        Args:
            tick: The tick (UTC).
            plan: The plan to freeze.

        Returns:
            The frozen plan: this one or an earlier one.

        Raises:
            StorageError: The plan was written but is missing now.
        """
        open_store(self.run_path(tick)).create(PLAN, plan.to_bytes())
        found = self.plan(tick)
        if found is None:
            raise StorageError(
                f"{self.run_path(tick)}/{PLAN}: was written but is missing now; run the tick again", passing=True
            )
        return found

    def taken(self) -> set[tuple[str, int, str]]:
        """Path, size (bytes) and tag of every file that a run of this schedule has planned.

        Raises:
            OutputError: A plan is damaged.
            StorageError: A plan cannot be read.
        """
        records = list(self._records())
        ends = {tick_name(tick): tag for tick, end, tag in records if end == COMPLETE}
        empty = {tick for tick, end, _ in records if end == EMPTY}
        index = TakenIndex.load(self._store, ends)
        known = index.ticks()
        runs = sorted({tick for tick, _, _ in records if tick not in empty and tick_name(tick) not in known})
        with ThreadPoolExecutor(PLAN_READERS) as pool:
            plans = dict(zip(map(tick_name, runs), pool.map(self.plan, runs), strict=True))
        found = {name: plan.files() if plan is not None else set() for name, plan in plans.items()}
        complete = {name: files for name, files in found.items() if name in ends}
        if complete:
            index.extended(complete, ends).store(self._store)
        return index.files().union(*found.values())


def _record(**facts: Any) -> bytes:
    """A record, as JSON. Its id is unique: a writer whose answer was lost recognises its own record by it."""
    writer = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    return json.dumps(facts | {"written_at": datetime.now(UTC).isoformat(timespec="seconds")} | writer).encode()
