"""Durations of a replica."""

from dataclasses import dataclass

from magbatch.ledger.holder import EXPIRY_S

TICK_S = 0.25  # longest delay of a due commit; a tick costs well under a millisecond
REPORT_INTERVAL_S = 1.0
ZOMBIES_S = 2 * EXPIRY_S  # a replica whose run was taken over starts commits for EXPIRY_S at most


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of a replica, in seconds.

    Attributes:
        notice_s: Time from SIGTERM to the end of the process. Platforms give 30 s.
        notice_wait_s: Wait for SIGTERM after an engine died: a platform may end the engine's process first.
        lease_interval_s: Time between two checks of the lease.
        lease_expiry_s: Age of the last check from which a commit needs a new one.
        tick_s: Time between two ticks of the replica's clock.
        report_interval_s: Time between two reports to the board.
    """

    notice_s: float = 25.0
    notice_wait_s: float = 1.0
    lease_interval_s: float = 5.0
    lease_expiry_s: float = EXPIRY_S
    tick_s: float = TICK_S
    report_interval_s: float = REPORT_INTERVAL_S
