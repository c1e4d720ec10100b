"""Reports of a replica to the board, about once a second: committed rows, usage and load."""

import time
from collections import deque

from magbatch.engines.base import Engine
from magbatch.errors import StorageError
from magbatch.replica.announced import Announced
from magbatch.replica.board import Board, Load
from magbatch.replica.commits import Commits
from magbatch.replica.departure import Departure
from magbatch.replica.in_flight import InFlight


class Refusals:
    """Refusals of the output's storage that were waited out. Threads of commits add them."""

    def __init__(self) -> None:
        self._latest: str | None = None
        self._uncounted: deque[None] = deque()  # append and popleft are atomic, a counter would not be

    def add(self, error: StorageError) -> None:
        """Note a refusal; called from any thread."""
        self._latest = str(error)
        self._uncounted.append(None)

    def take_latest(self) -> str | None:
        """The newest refusal since the last call; None if there is none."""
        latest, self._latest = self._latest, None
        return latest

    def take_count(self) -> int:
        """Number of refusals since the last call."""
        count = 0
        while self._uncounted:
            self._uncounted.popleft()
            count += 1
        return count


class Reports:
    """Sender of reports, which makes the replica obey the orders that come back.

    Args:
        name: Name of the replica on the board.
        board: Board of the run, which answers with orders.
        engine: Engine whose load is reported.
        commits: Finished rows and their commits.
        in_flight: Rows inside the engine.
        announced: Rows that the replica is responsible for.
        refusals: Refusals of the output's storage.
        departure: State that follows the orders.
    """

    def __init__(
        self,
        name: str,
        board: Board,
        engine: Engine,
        *,
        commits: Commits,
        in_flight: InFlight,
        announced: Announced,
        refusals: Refusals,
        departure: Departure,
    ) -> None:
        self._name, self._board, self._engine = name, board, engine
        self._commits, self._in_flight, self._announced = commits, in_flight, announced
        self._refusals, self._departure = refusals, departure
        self._preemptions = 0  # preemptions of the engine that were reported already
        self._idle_slot_s = 0.0

    def add_idle(self, seconds: float) -> None:
        """Count seconds in which the engine had free slots."""
        self._idle_slot_s += seconds

    async def send_refusal(self) -> None:
        """Tell the board if the output's storage has refused since the last call."""
        if (refusal := self._refusals.take_latest()) is not None:
            await self._board.trouble(f"the output's storage refuses, trying again: {refusal}")

    async def send(self) -> None:
        """Report everything since the last report, and obey the order that comes back."""
        load = self._engine.load()
        done, usage = self._commits.take_counts()
        usage.preemptions += load.preemptions - self._preemptions
        self._preemptions = load.preemptions
        usage.short_s, self._idle_slot_s = self._idle_slot_s, 0.0
        usage.commit_retries += self._refusals.take_count()
        waiting = sum(len(attempt.open) for attempt in self._commits.attempts)
        state = Load(len(self._in_flight), waiting, load, self._commits.waiting)
        order = await self._board.report(self._name, done, usage, state, self._announced.by_shard())
        await self._departure.obey(order, time.monotonic())
