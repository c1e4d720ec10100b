"""Rows inside one engine, and whether a row or the whole engine hangs.

- A row hangs if it gets no token for `patience_s` while other rows get some.
- A row without a first token may just wait for a slot. It hangs if rows that entered well after it have a first token.
- An engine hangs if no row gets a token for that time. It is as good as dead.
- A row without a request, e.g. while its answer is checked, does not count: neither it nor the engine hangs.
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
    """A request of a row. A row may make several, one after the other or at once.

    Attributes:
        began: Time (monotonic, s) at which it was sent.
        pulse: Time (monotonic, s) of its last tokens; None before the first.
    """

    began: float
    pulse: float | None = None


@dataclass(slots=True, eq=False)
class RowInFlight:
    """A row inside the engine.

    Attributes:
        shard: Index of the row's shard.
        task: Task that answers the row.
        requests: Requests of the row that are under way, or that the death of the engine ended.
        hangs: Whether the task was cancelled because the row hangs.
    """

    shard: int
    task: asyncio.Task[Any]
    requests: set[_Request] = field(default_factory=set)
    hangs: bool = False


class InFlight:
    """Rows inside one engine.

    Args:
        patience_s: Seconds without a token after which a row or the engine hangs; None for no limit.
    """

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self._rows: dict[str, RowInFlight] = {}
        self._pulse = 0.0  # time of the last token of any row
        self._reached = 0.0  # start of the newest request that has a first token; engines serve requests in turn

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def requests(self) -> int:
        """Number of requests that are under way."""
        return sum(len(row.requests) for row in self._rows.values())

    def enter(self, shard: int, row_id: str) -> RowInFlight:
        """Note that the current task answers a row of a shard."""
        task = asyncio.current_task()
        assert task is not None
        row = self._rows[row_id] = RowInFlight(shard, task)
        return row

    def leave(self, row_id: str) -> None:
        """Remove a row; a row that has left already is ignored."""
        self._rows.pop(row_id, None)

    def by_shard(self) -> dict[int, list[str]]:
        """Shard to the ids of its rows with a request in the engine, or in the engine when it died."""
        found: dict[int, list[str]] = {}
        for row_id, row in self._rows.items():
            if row.requests:
                found.setdefault(row.shard, []).append(row_id)
        return found

    def watch(self, row: RowInFlight) -> "Watching":
        """A context for the length of one request of a row; see `answer.Pulse`."""
        return Watching(self, row)

    def pulse(self, request: _Request) -> None:
        """Note that tokens of a request have arrived."""
        request.pulse = self._pulse = time.monotonic()
        self._reached = max(self._reached, request.began)

    def check(self, now: float) -> bool:
        """Cancel the rows that hang.

        Args:
            now: Time (monotonic, s).

        Returns:
            Whether the whole engine hangs.
        """
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
        """Whether a request is silent for longer than `patience` while newer signs of life of the engine exist.

        Half of `patience` is the least lead of those signs: a row that is only a little behind does not hang.

        Example, for a patience of 60 s at the time 100.

        1. A request had its last token at 30, another row had one at 99. Silent for 70 s, 69 s behind: it hangs.
        2. The other row had its last token at 50. Only 20 s behind: it does not hang.
        3. A request was sent at 30 and has no token, but a request sent at 80 has one. Overtaken by 50 s: it hangs.
        4. The newest request with a token was sent at 40. Overtaken by 10 s: it may just wait for a slot.

        Args:
            request: Request that is under way.
            now: Time (monotonic, s).
            patience: Seconds of silence.
        """
        started = request.pulse is not None
        since, went_on = (request.pulse or 0.0, self._pulse) if started else (request.began, self._reached)
        return now - since > patience and went_on - since > patience / 2


class Watching:
    """A request of a row, from start to end. A class is faster than a generator, and every row passes here."""

    __slots__ = ("_in_flight", "_request", "_row")

    def __init__(self, in_flight: InFlight, row: RowInFlight) -> None:
        self._in_flight, self._row = in_flight, row
        self._request = _Request(time.monotonic())

    def __enter__(self) -> Callable[[], None]:
        self._row.requests.add(self._request)
        return functools.partial(self._in_flight.pulse, self._request)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None or not issubclass(error, EngineDeadError):  # a request that the engine died with stays
            self._row.requests.discard(self._request)
