"""What a schedule has begun and ended, and which files its runs have taken, from its output alone.

```
OUTPUT/_magbatch/schedule/since.json                when a scheduler first saw the schedule
OUTPUT/_magbatch/schedule/<tick>.json               the tick was begun; created once
OUTPUT/_magbatch/schedule/<tick>.complete.json      its run is complete
OUTPUT/_magbatch/schedule/<tick>.empty.json         it had no new files
OUTPUT/_magbatch/schedule/taken.parquet             the files of complete runs, so that their plans need not be read
OUTPUT/runs/<tick>/                                 the run: an ordinary output of a job
```

The plan of a run is the claim on its files, and is created once too: a tick never has two plans. Records of ends
say only what a plan and a manifest say as well, so that they may be written late, twice, or not at all.
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
from magbatch.ledger.layout import PLAN
from magbatch.ledger.ledger import Ledger
from magbatch.plan.plan import Plan
from magbatch.schedule.taken import TakenIndex
from magbatch.schedule.ticks import tick_name, tick_of
from magbatch.storage import Store, open_store

RECORDS = "_magbatch/schedule/"
SINCE = f"{RECORDS}since.json"
PLAN_READERS = 16  # plans are small and far away
BEGUN, COMPLETE, EMPTY = "begun", "complete", "empty"


@dataclass(frozen=True)
class Ticks:
    """The ticks that an output knows.

    Attributes:
        states: `begun`, `complete` or `empty`, by tick, in order.
    """

    states: dict[datetime, str]

    @property
    def last(self) -> datetime | None:
        """The latest that was begun."""
        return max(self.states, default=None)

    @property
    def open(self) -> list[datetime]:
        """Those that were begun and have no end, oldest first."""
        return [tick for tick, state in self.states.items() if state == BEGUN]


class History:
    """The records of one schedule.

    Args:
        output: The spec's output.path: a local directory or s3:// prefix.
        quick: A store that does not answer within seconds is an error, not waited for.
    """

    def __init__(self, output: str, *, quick: bool = False) -> None:
        self.output = output.rstrip("/")
        self._store: Store = open_store(self.output, quick=quick)

    def run_path(self, tick: datetime) -> str:
        """The output of a tick's run."""
        return f"{self.output}/runs/{tick_name(tick)}"

    def ticks(self) -> Ticks:
        """What was begun and ended: one listing of names.

        Raises:
            StorageError: The output cannot be listed.
        """
        states: dict[datetime, str] = {}
        for tick, end, _ in self._records():
            if end or tick not in states:
                states[tick] = end if end in {COMPLETE, EMPTY} else BEGUN
        return Ticks(dict(sorted(states.items())))

    def _records(self) -> Iterator[tuple[datetime, str, str]]:
        """Tick, end and tag of each record: the end of one that a tick was begun is empty."""
        for item in self._store.list(RECORDS):
            name, _, end = item.name.removeprefix(RECORDS).removesuffix(".json").partition(".")
            tick = tick_of(name)
            if tick is not None:
                yield tick, end, item.tag

    def since(self, now: datetime) -> datetime:
        """When a scheduler first saw this schedule: now, where none has. Ticks before that were never missed."""
        self._store.create(SINCE, _record(at=now.isoformat()))
        return self.seen() or now

    def seen(self) -> datetime | None:
        """When a scheduler first saw this schedule; None where none has, or the record is damaged."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            return datetime.fromisoformat(json.loads(self._store.read(SINCE))["at"]).astimezone(UTC)
        return None

    def begin(self, tick: datetime) -> bool:
        """Record that a tick is begun: of several that do, one is told True."""
        return self._store.create(f"{RECORDS}{tick_name(tick)}.json", _record(tick=tick.isoformat()))

    def end(self, tick: datetime, state: str, **facts: Any) -> None:
        """Record how a tick ended."""
        name = f"{RECORDS}{tick_name(tick)}.{state}.json"
        self._store.write(name, _record(tick=tick.isoformat(), **facts))

    def facts(self, tick: datetime, state: str) -> dict[str, Any]:
        """What the record of an end says; empty where it is not there, or damaged."""
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(self._store.read(f"{RECORDS}{tick_name(tick)}.{state}.json"))
            return found if isinstance(found, dict) else {}
        return {}

    def plan(self, tick: datetime) -> Plan | None:
        """The frozen plan of a tick's run; None where it has none yet."""
        return Ledger(self.run_path(tick)).plan()

    def claim(self, tick: datetime, plan: Plan) -> Plan:
        """Freeze a tick's plan, unless it has one: the one that holds is handed back.

        Raises:
            StorageError: It was there and is gone.
        """
        open_store(self.run_path(tick)).create(PLAN, plan.to_bytes())
        found = self.plan(tick)
        if found is None:
            raise StorageError(f"{self.run_path(tick)}/{PLAN}: it was written, and is gone", passing=True)
        return found

    def taken(self) -> set[tuple[str, int, str]]:
        """Path, size (bytes) and tag of every file that a run of this schedule has in its plan.

        Raises:
            OutputError: A plan is damaged.
            StorageError: One cannot be read.
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
    """One record; its id makes it unlike any other, by which an own write whose answer was lost is known."""
    who = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    return json.dumps(facts | {"written_at": datetime.now(UTC).isoformat(timespec="seconds")} | who).encode()
