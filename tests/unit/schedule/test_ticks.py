"""Every day has its ticks once, and missed ones are made up for by one run, or not at all."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magbatch.errors import SpecError
from magbatch.schedule.ticks import GRACE, due, latest, parse_at, tick_name, tick_of, ticks, upcoming
from magbatch.spec import ScheduleSpec

PARIS = ZoneInfo("Europe/Paris")
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)


def schedule(cron: str, timezone: str = "Europe/Paris", **more: str) -> ScheduleSpec:
    return ScheduleSpec.model_validate({"cron": cron, "timezone": timezone, **more})


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def on(day: date, cron: str) -> list[datetime]:
    """The ticks of a day, as the clocks of Paris count it."""
    begin = datetime(day.year, day.month, day.day, tzinfo=PARIS)
    end = begin + timedelta(days=1)  # of the clock on the wall
    found = []
    for tick in ticks(schedule(cron), begin.astimezone(UTC) - timedelta(seconds=1)):
        if tick >= end.astimezone(UTC):
            return found
        found.append(tick)
    return found


def test_a_daily_job_in_the_gap_of_spring_runs_once_right_after_it() -> None:
    assert on(SPRING, "30 2 * * *") == [utc("2026-03-29T01:00")]  # 03:00 in summer time
    assert on(SPRING, "0,30 2 * * *") == [utc("2026-03-29T01:00")]
    assert on(SPRING + timedelta(days=1), "30 2 * * *") == [utc("2026-03-30T00:30")]


def test_a_daily_job_in_the_repeated_hour_of_autumn_runs_once_at_the_first() -> None:
    assert on(AUTUMN, "30 2 * * *") == [utc("2026-10-25T00:30")]
    assert on(AUTUMN + timedelta(days=1), "30 2 * * *") == [utc("2026-10-26T01:30")]


@pytest.mark.parametrize(("day", "hours"), [(SPRING, 23), (AUTUMN, 25), (date(2026, 6, 1), 24)])
def test_an_hourly_job_follows_the_real_hours(day: date, hours: int) -> None:
    found = on(day, "0 * * * *")
    assert len(found) == hours
    assert {after - before for before, after in pairwise(found)} == {timedelta(hours=1)}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["30 2 * * *", "0 * * * *", "*/20 * * * *", "0,30 2 * * *", "15 1-3 * * *", "0 0 * * SUN"]),
    st.sampled_from([utc("2026-03-28T20:00"), utc("2026-10-24T20:00")]),
    st.integers(0, 12 * 3600),
)
def test_from_wherever_one_looks_the_ticks_are_the_same(cron: str, begin: datetime, later: int) -> None:
    def until(after: datetime) -> list[datetime]:
        found = []
        for tick in ticks(schedule(cron), after):
            if tick > begin + timedelta(days=2):
                return found
            found.append(tick)
        return found

    now = begin + timedelta(seconds=later)
    whole = until(begin - timedelta(days=8))
    assert until(now) == [tick for tick in whole if tick > now]
    assert latest(schedule(cron), now) == max(tick for tick in whole if tick <= now)


def test_the_latest_tick_of_rare_and_of_dense_schedules_is_found_at_once() -> None:
    now = utc("2026-11-24T12:00:30")
    assert latest(schedule("* * * * *"), now) == utc("2026-11-24T12:00")
    assert latest(schedule("0 6 29 2 *"), now) == utc("2024-02-29T05:00")
    assert upcoming(schedule("0 6 29 2 *"), now) == utc("2028-02-29T05:00")


@pytest.mark.parametrize(
    ("missed", "now", "tick"),
    [
        ("catch_up", "2026-11-24T04:59", None),  # had yesterday's, and today's is to come
        ("catch_up", "2026-11-24T05:00", "2026-11-24T05:00"),
        ("catch_up", "2026-11-27T12:00", "2026-11-27T05:00"),  # one run for four missed ticks: the latest
        ("skip", "2026-11-24T05:00", "2026-11-24T05:00"),
        ("skip", "2026-11-24T05:05", "2026-11-24T05:00"),  # late, but no more than is allowed
        ("skip", "2026-11-24T05:06", None),
        ("skip", "2026-11-27T12:00", None),
    ],
)
def test_missed_ticks_are_one_run_or_none(missed: str, now: str, tick: str | None) -> None:
    assert timedelta(minutes=5) == GRACE
    found = due(schedule("0 6 * * *", missed=missed), utc("2026-11-23T05:00"), utc(now))
    assert found == (None if tick is None else utc(tick))


def test_a_tick_is_due_once() -> None:
    now = utc("2026-11-24T05:01")
    assert due(schedule("0 6 * * *"), utc("2026-11-24T05:00"), now) is None
    assert due(schedule("0 6 * * *"), utc("2026-11-24T04:59:59"), now) == utc("2026-11-24T05:00")


def test_a_tick_has_a_name_that_reads_back() -> None:
    assert tick_name(datetime(2026, 11, 24, 6, tzinfo=PARIS)) == "20261124T050000Z"
    assert tick_of("20261124T050000Z") == utc("2026-11-24T05:00")
    assert tick_of("since") is None


def test_a_time_without_an_offset_is_the_schedules() -> None:
    now = utc("2026-11-24T12:00")
    assert parse_at("2026-11-24T06:00", schedule("0 6 * * *"), now) == utc("2026-11-24T05:00")
    assert parse_at("2026-11-24T06:00Z", schedule("0 6 * * *"), now) == utc("2026-11-24T06:00")
    for wrong, said in (("soon", "write a time such as"), ("2026-11-25", "is in the future")):
        with pytest.raises(SpecError, match=said):
            parse_at(wrong, schedule("0 6 * * *"), now)
