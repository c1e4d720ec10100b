"""The rows inside one engine, and whether they, or the engine, hang.

A row hangs when it gets no token for a while in which the engine went on with others; an engine that gives none to
any is as good as dead. Of a row without a first token nothing is known but that it may wait for a slot: it hangs
when rows that began well after it have theirs. A row without a request, as one whose answer is checked, waits for
no engine: neither it nor the engine hangs.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from magbatch.errors import EngineDeadError


@dataclass(slots=True, eq=False)
class _Request:
    """One request of a row: a row may make several, one after the other or at once."""

    began: float
    pulse: float | None = None  # when its last tokens came; None before the first


@dataclass(slots=True, eq=False)
class RowInFlight:
    """One row.

    Attributes:
        shard: Its shard.
        task: What asks for it.
        requests: Of it, under way, or ended by the death of the engine.
        hangs: Its task was cancelled because of that.
    """

    shard: int
    task: asyncio.Task[Any]
    requests: set[_Request] = field(default_factory=set)
    hangs: bool = False


class InFlight:
    """The rows inside one engine.

    Args:
        patience_s: Seconds without a token after which a row, or the engine, hangs; None waits on.
    """

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self._rows: dict[str, RowInFlight] = {}
        self._pulse = 0.0  # when the engine last gave any row a token
        self._reached = 0.0  # when the youngest of the rows began that have a first token: engines serve in turn

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def requests(self) -> int:
        """Requests that are under way."""
        return sum(len(row.requests) for row in self._rows.values())

    def enter(self, shard: int, row_id: str) -> RowInFlight:
        """The current task asks for a row of a shard."""
        task = asyncio.current_task()
        assert task is not None
        row = self._rows[row_id] = RowInFlight(shard, task)
        return row

    def leave(self, row_id: str) -> None:
        """A row is no longer asked for; one that has left already is no error."""
        self._rows.pop(row_id, None)

    def by_shard(self) -> dict[int, list[str]]:
        """The rows with a request in the engine, or that were in it as it died, by shard."""
        found: dict[int, list[str]] = {}
        for row_id, row in self._rows.items():
            if row.requests:
                found.setdefault(row.shard, []).append(row_id)
        return found

    def watch(self, row: RowInFlight) -> "Watching":
        """See `generate.RequestMonitor`: for the length of one request of a row."""
        return Watching(self, row)

    def pulse(self, request: _Request) -> None:
        """Tokens of a request have come."""
        request.pulse = self._pulse = time.monotonic()
        self._reached = max(self._reached, request.began)

    def look(self, now: float) -> bool:
        """Cancel the rows that hang; True where the whole engine does."""
        patience = self._patience_s
        began = min((request.began for row in self._rows.values() for request in row.requests), default=None)
        if patience is None or began is None:
            return False
        if now - max(self._pulse, began) > patience:
            return True
        for row in self._rows.values():
            if any(self._hangs(request, now, patience) for request in row.requests):
                row.hangs = True
                row.task.cancel()
        return False

    def _hangs(self, request: _Request, now: float, patience: float) -> bool:
        started = request.pulse is not None
        since, went_on = (request.pulse or 0.0, self._pulse) if started else (request.began, self._reached)
        return now - since > patience and went_on - since > patience / 2


class Watching:
    """A request of a row, from its beginning to its end; a class, since each row of a job enters one."""

    __slots__ = ("_in_flight", "_request", "_row")

    def __init__(self, in_flight: InFlight, row: RowInFlight) -> None:
        self._in_flight, self._row = in_flight, row
        self._request = _Request(time.monotonic())

    def __enter__(self) -> Callable[[], None]:
        self._row.requests.add(self._request)
        return functools.partial(self._in_flight.pulse, self._request)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None or not issubclass(error, EngineDeadError):  # what the engine died with counts as in it
            self._row.requests.discard(self._request)
