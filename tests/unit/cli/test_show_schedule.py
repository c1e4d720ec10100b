"""Schedules, ticks and runs are shown one a line, with the command that follows."""

import pytest
from support.schedules import NOW

from magbatch.cli.show_schedule import print_listing, print_runs, print_ticks
from magbatch.errors import EngineStartError
from magbatch.schedule.listing import LastTick, ListedProblem, ListedSchedule
from magbatch.schedule.results import EndedRun, Problem
from magbatch.schedule.tick import TickOutcome


def test_runs_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_runs("specs", [EndedRun("a", NOW, 0), EndedRun("b", NOW, 3), Problem("c.yaml", "wrong", 2)])
    print_runs("specs", [])
    assert capsys.readouterr().out.splitlines() == [
        "specs: 3 runs ended, 1 with exit code 0",
        "Next: magbatch schedule list specs",
        "specs: no run ended",
        "Next: magbatch schedule list specs",
    ]


def test_ticks_say_what_they_came_to(capsys: pytest.CaptureFixture[str]) -> None:
    failed = TickOutcome(NOW, "begun", "/out/1", None, error=EngineStartError("no device"))
    empty = TickOutcome(NOW, "empty", "/out/2", 0, already=True)
    done = TickOutcome(NOW, "complete", "/out/3", 2, already=True, too_many_failed=True)
    print_ticks("daily", "specs/daily.yaml", [failed, empty, done])
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "daily: tick 2026-11-24T05:01:00Z: no new files, as before",
        "daily: tick 2026-11-24T05:01:00Z: 2 files into /out/3, as before",
        "Next: magbatch schedule list specs",
    ]
    assert err.splitlines() == [
        "daily: tick 2026-11-24T05:01:00Z: not complete: no device",
        "More rows failed than limits.max_failed_rows allowed then.",
    ]


def test_schedules_are_listed_with_their_last_and_next_tick(capsys: pytest.CaptureFixture[str]) -> None:
    last = LastTick(NOW, "complete", "/out/runs/1", {"files": 1, "rows": 1200})
    row = ListedSchedule("a.yaml", "a", "/out", "0 6 * * *", "UTC", 1, last, due=NOW, next=None)
    print_listing("specs", [row, ListedProblem("b.yaml", "b.yaml: not YAML")])
    assert capsys.readouterr().out.splitlines() == [
        "a: 0 6 * * * (UTC), 1 tick so far",
        "  last: 2026-11-24T05:01:00+00:00 complete, 1 files, 1,200 rows",
        "  output: /out/runs/1",
        "  due: 2026-11-24T05:01:00+00:00",
        "  next: none in the next 50 years",
        "b.yaml: not YAML",
        "Next: magbatch schedule run specs",
    ]
