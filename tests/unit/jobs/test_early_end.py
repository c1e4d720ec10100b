"""A job ends early when its failures say that the rest would be paid for in vain, and never otherwise."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from magbatch.counts import counted
from magbatch.errors import ErrorCode, TooManyFailedError
from magbatch.jobs.early_end import ASKED, LATE, Failures, Timing
from magbatch.replica.board import Load, Slot, Snapshot, State
from magbatch.spec import JobSpec, parse
from magbatch.totals import Totals

ALIKE = {"answer_invalid": 200}
# Rows that fail before an engine is asked, and `internal`: a defect may be at any step.
NOT_ASKED = {
    ErrorCode.FILE_UNREADABLE, ErrorCode.FILE_SCHEMA, ErrorCode.FILE_CHANGED, ErrorCode.ROW_UNREADABLE,
    ErrorCode.READER_KILLER, ErrorCode.MISSING_VALUE, ErrorCode.TEMPLATE_ERROR, ErrorCode.INVALID_MESSAGES,
    ErrorCode.IMAGE_UNREADABLE, ErrorCode.IMAGE_TOO_LARGE, ErrorCode.IMAGE_TIMEOUT, ErrorCode.IMAGE_UNFETCHABLE,
    ErrorCode.TOO_MANY_IMAGES, ErrorCode.IMAGES_UNSUPPORTED, ErrorCode.URL_REFUSED, ErrorCode.DOCUMENT_UNREADABLE,
    ErrorCode.DOCUMENT_ENCRYPTED, ErrorCode.DOCUMENT_EMPTY, ErrorCode.DOCUMENT_TOO_LARGE, ErrorCode.DOCUMENT_TIMEOUT,
    ErrorCode.DOCUMENT_UNFETCHABLE, ErrorCode.TOO_MANY_PAGES, ErrorCode.PROMPT_TOO_LONG, ErrorCode.INTERNAL,
}  # fmt: skip


def test_each_code_says_whether_an_engine_was_asked() -> None:
    assert LATE < ASKED
    assert not ASKED & NOT_ASKED
    assert set(ErrorCode) == ASKED | NOT_ASKED


def spec(limit: Any) -> JobSpec:
    return parse(
        yaml.safe_dump({
            "name": "test", "model": {"source": "builtin:tiny"}, "limits": {"max_failed_rows": limit},
            "input": {"path": "/in", "columns": {"prompt": "q"}},
            "output": {"path": "/out", "commit_interval_s": 0.005},
        })
    )  # fmt: skip


def fleet(in_flight: int = 0, waiting: int = 0) -> Snapshot:
    return Snapshot(slots=[Slot(0, State.SERVING, load=Load(in_flight, waiting))], starting=False)


def done(failed: int, answered: int = 0, **by_code: int) -> Totals:
    return Totals(answered=answered, failed=failed, by_code=by_code or {"answer_invalid": failed})


@pytest.mark.parametrize(
    ("limit", "planned", "failed", "answered", "ends"),
    [
        (0, 1000, 0, 50, False),
        (0, 1000, 1, 0, True),
        (3, 1000, 3, 500, False),
        (3, 1000, 4, 0, True),
        (3, 10, 4, 6, False),  # it is complete
        ("5%", 10_000, 500, 0, False),
        ("5%", 10_000, 501, 0, True),
        ("0.5%", 1000, 6, 93, False),  # 99 rows
        ("0.5%", 1000, 6, 94, True),
        ("5%", 40, 20, 0, False),
        ("100%", 10_000, 9999, 0, False),
    ],
)
def test_more_failures_than_allowed_end_a_job(limit: Any, planned: int, failed: int, answered: int, ends: bool) -> None:
    found = Failures(spec(limit), planned).check(done(failed, answered), fleet(50, 50))
    assert (found is not None) is ends
    earlier = Failures(spec(limit), planned, answered, failed).check(Totals(), fleet())
    assert (earlier is not None) is ends
    if found is not None:
        assert found.exit_code == 1
        assert f"{counted(failed, 'row')} failed, more than limits.max_failed_rows allows" in str(found)


def failures(limit: Any, planned: int = 10_000, answered: int = 0) -> Failures:
    """The decision about a job, which settles within milliseconds."""
    return Failures(spec(limit), planned, answered, timing=Timing(settle_s=0.001))


def settled(decision: Failures, totals: Callable[[], Totals], snapshot: Snapshot) -> TooManyFailedError | None:
    """Messages after a while of the same failures."""
    for _ in range(40):  # looks, not seconds: a busy machine may sleep for long
        found = decision.check(totals(), snapshot)
        if found is not None:
            return found
        time.sleep(0.002)
    return None


@pytest.mark.parametrize(
    ("totals", "snapshot", "ends"),
    [
        (done(200), fleet(100, 100), True),
        (done(200), fleet(150, 100), False),  # more are on their way, which may be answered
        (done(99), fleet(), False),
        (done(200, answered=1), fleet(), False),
        (done(200, answer_invalid=199, internal=1), fleet(), False),
        (done(200, missing_value=200), fleet(1), False),  # found before any row could be answered
        (done(999, missing_value=999), fleet(), False),  # of 10,000: perhaps what sorts first
        (done(1000, missing_value=1000), fleet(), True),
        (done(200, engine_rejected=200), fleet(8), False),
    ],
)
def test_a_job_whose_first_rows_all_fail_alike_ends(totals: Totals, snapshot: Snapshot, ends: bool) -> None:
    found = settled(failures(None), lambda: totals, snapshot)
    assert (found is not None) is ends
    if found is not None:
        assert f"all of the first {totals.failed:,} rows failed, each with the code" in str(found)
    for limit in (9999, "100%"):
        assert settled(failures(limit), lambda: totals, snapshot) is None
    assert settled(failures(None, answered=1), lambda: totals, snapshot) is None


def test_what_looks_alike_for_a_moment_only_ends_nothing() -> None:
    turns = itertools.cycle([done(200), done(200), done(200, answered=1)])
    assert settled(failures(None), lambda: next(turns), fleet()) is None


UNFETCHABLE, INVALID = "document_unfetchable", "answer_invalid"


@pytest.mark.parametrize(
    ("planned", "code", "failed", "ends"),
    [
        (10_000_000, UNFETCHABLE, 100, False),
        (10_000_000, UNFETCHABLE, 50_000, False),
        (10_000_000, "document_encrypted", 50_000, False),
        (10_000_000, UNFETCHABLE, 1_000_000, True),
        (2_000, UNFETCHABLE, 199, False),
        (2_000, UNFETCHABLE, 200, True),
        (300, UNFETCHABLE, 100, True),
        (10_000_000, INVALID, 999, False),
        (10_000_000, INVALID, 1_000, True),
        (10_000_000, "engine_rejected", 1_000, True),
        (50_000, INVALID, 499, False),
        (50_000, INVALID, 500, True),
        (1_500, INVALID, 100, True),
    ],
)
def test_what_sorts_first_ends_no_job_and_what_is_asked_in_vain_does(
    planned: int, code: str, failed: int, ends: bool
) -> None:
    totals = done(failed, **{code: failed})
    assert (settled(failures(None, planned), lambda: totals, fleet()) is not None) is ends


@pytest.mark.parametrize(("failed", "answered", "ends"), [(999, 0, False), (1000, 0, True), (1000, 1, False)])
def test_engines_that_wait_in_vain_for_long_end_a_job(failed: int, answered: int, ends: bool) -> None:
    impatient = Timing(idle_s=0.01, settle_s=0.001)
    totals = done(failed, answered, document_unfetchable=failed)
    assert (settled(Failures(spec(None), 10_000_000, timing=impatient), lambda: totals, fleet()) is not None) is ends
