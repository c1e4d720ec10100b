"""Rows that were in engines that died: the row that kills engines is found, and the innocent rows are answered."""

import asyncio

from magbatch.errors import ErrorCode, Step
from magbatch.rows import DeadLetter

STRIKES = 3
"""Engines that die with a row in flight before the row counts as their killer.

After the first death an eighth of the engine's slots is open to suspects, after the second one suspect at a time. So
three deaths find a killer among 2 x 256 rows, and an innocent row would have to be there at all three.
"""
SLOTS_PER_SUSPECT = 8  # slots for each suspect after one death: 32 suspects at once for an engine with 256 slots


class Suspects:
    """Limit on the number of suspects in the engine at once, by their strikes.

    Args:
        slots: Rows that the engine works on at once.
    """

    def __init__(self, slots: int) -> None:
        at_once = [max(1, slots // SLOTS_PER_SUSPECT), *[1] * (STRIKES - 2)]  # bounds for 1, 2 … STRIKES - 1 strikes
        self._bounds = {strikes: asyncio.Semaphore(rows) for strikes, rows in enumerate(at_once, start=1)}

    def bound(self, strikes: int) -> asyncio.Semaphore:
        """The semaphore that a suspect holds while the engine works on it.

        Args:
            strikes: Engines that died with the row in flight: 1 to `STRIKES` - 1.
        """
        return self._bounds[strikes]

    @staticmethod
    def letter(row_id: str, strikes: int) -> DeadLetter | None:
        """The dead letter of a row with too many strikes; None if the row may still be asked."""
        if strikes < STRIKES:
            return None
        message = f"the row was in flight in {STRIKES} engines when they died or hung"
        return DeadLetter(row_id, Step.GENERATE, ErrorCode.ENGINE_KILLER, message)
