"""When a schedule is due: from the clock and what has run, nothing else.

A day has every tick once, also the two odd days of the year. What is to happen at an hour of the day happens
once: at the first of two same times in autumn, right after the gap in spring. What is to happen every so often
(a star for the minute or the hour) follows the real time: hourly is 23 or 25 times on these days.

Missed ticks are never made up for one by one. `catch_up`: one run, for the latest of them. `skip`: none; the
next tick is waited for. A tick that comes while the run before is still going counts as missed when that ends.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from magbatch.errors import SpecError
from magbatch.spec import ScheduleSpec

GRACE = timedelta(minutes=5)  # a scheduler that is replaced, or a node that is found, takes a minute or two
NAME = "%Y%m%dT%H%M%SZ"  # sorts as time does
# How far back the latest tick is looked for, nearest first: few ticks are counted through, whatever the cron says.
_LOOK_BACK = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366), timedelta(days=365 * 40))


def ticks(schedule: ScheduleSpec, after: datetime) -> Iterator[datetime]:
    """The ticks after a moment, in order, each once, in UTC."""
    last = after.astimezone(UTC)
    for local in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.timezone))):
        tick = local.astimezone(UTC)
        if tick > last:  # two times of a day within the gap are one, and those of the repeated hour have been
            last = tick
            yield tick


def latest(schedule: ScheduleSpec, now: datetime) -> datetime | None:
    """The latest tick that is not after a moment."""
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
    """The next tick after a moment; None where there is none in the next 50 years."""
    return next(ticks(schedule, now), None)


def due(schedule: ScheduleSpec, since: datetime, now: datetime) -> datetime | None:
    """The tick that is to run now, if any.

    Args:
        schedule: When it runs, and what becomes of missed ticks.
        since: The last tick that was begun, or when the schedule was first seen.
        now: The time.
    """
    tick = latest(schedule, now)
    if tick is None or tick <= since or (schedule.missed == "skip" and now - tick > GRACE):
        return None
    return tick


def tick_name(tick: datetime) -> str:
    """A tick as outputs and records name it: 20261124T050000Z."""
    return tick.astimezone(UTC).strftime(NAME)


def tick_of(name: str) -> datetime | None:
    """The tick of such a name; None where it is none."""
    try:
        return datetime.strptime(name, NAME).replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_at(text: str, schedule: ScheduleSpec, now: datetime) -> datetime:
    """A moment as a person writes it: ISO 8601, by the schedule's clock where it names no offset.

    Raises:
        SpecError: It is none, or it is to come.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(f"--at {text}: write a time such as 2026-11-24T06:00:00+01:00") from error
    if at.tzinfo is None:
        at = at.replace(tzinfo=ZoneInfo(schedule.timezone))
    at = at.astimezone(UTC).replace(microsecond=0)
    if at > now:
        raise SpecError(f"--at {text}: this time is to come; ticks that have been can be run")
    return at
