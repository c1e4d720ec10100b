"""Ticks of a schedule: which tick is due depends on the clock and on past ticks alone.

On the two days a year when clocks change, each tick still happens once. A fixed time of day (6:00) happens at the first
of two equal times in autumn, and right after the gap in spring. A repeated time (a star for the minute or the hour)
follows real time: hourly means 25 ticks on the day in autumn, and 23 in spring.

Missed ticks are not made up one by one. With `missed: catch_up`, one run takes the latest of them. With `missed: skip`,
none is run, and the next tick is awaited. A tick that comes during an earlier run counts as missed when that run
ends.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from magbatch.errors import SpecError
from magbatch.spec import ScheduleSpec

GRACE = timedelta(minutes=5)  # delay that is not a miss: replacing a scheduler or finding a node takes a minute or two
NAME = "%Y%m%dT%H%M%SZ"  # names sort by time
# Spans in which the latest tick is searched, shortest first, so that few ticks are counted for any cron expression.
_LOOK_BACK = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366), timedelta(days=365 * 40))


def ticks(schedule: ScheduleSpec, after: datetime) -> Iterator[datetime]:
    """Yield the ticks after a moment (UTC), in order, each once."""
    last = after.astimezone(UTC)
    for local in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.timezone))):
        tick = local.astimezone(UTC)
        if tick > last:  # drops times that fall together after the gap, or come again in the repeated hour
            last = tick
            yield tick


def latest(schedule: ScheduleSpec, now: datetime) -> datetime | None:
    """The latest tick until a moment (UTC); None if there was none in the last 40 years."""
    for span in _LOOK_BACK:
        found = None
        for tick in ticks(schedule, now - span):
            if tick > now:
                break
            found = tick
        if found is not None:
            return found
    return None


def upcoming(schedule: ScheduleSpec, now: datetime) -> datetime | None:
    """The next tick after a moment (UTC); None if there is none in the next 50 years."""
    return next(ticks(schedule, now), None)


def due(schedule: ScheduleSpec, since: datetime, now: datetime) -> datetime | None:
    """The tick that is due now (UTC); None if no tick is due.

    Args:
        schedule: Schedule with cron expression, time zone and handling of missed ticks.
        since: The last tick that started, or the time when the schedule was first seen.
        now: Current time (UTC).
    """
    tick = latest(schedule, now)
    if tick is None or tick <= since or (schedule.missed == "skip" and now - tick > GRACE):
        return None
    return tick


def tick_name(tick: datetime) -> str:
    """Name of a tick in outputs and records, such as `20261124T050000Z`."""
    return tick.astimezone(UTC).strftime(NAME)


def tick_of(name: str) -> datetime | None:
    """The tick (UTC) that a name stands for; None if it is not the name of a tick."""
    try:
        return datetime.strptime(name, NAME).replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_at(text: str, schedule: ScheduleSpec, now: datetime) -> datetime:
    """Parse a time that a person wrote.

    Args:
        text: ISO 8601 time. Without an offset, the schedule's time zone applies.
        schedule: Schedule whose time zone applies.
        now: Current time (UTC).

    Returns:
        The time (UTC).

    Raises:
        SpecError: The text is not a time, or the time is in the future.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(f"--at {text}: write a time such as 2026-11-24T06:00:00+01:00") from error
    if at.tzinfo is None:
        at = at.replace(tzinfo=ZoneInfo(schedule.timezone))
    at = at.astimezone(UTC).replace(microsecond=0)
    if at > now:
        raise SpecError(f"--at {text}: this time is in the future; give the time of a past tick")
    return at
