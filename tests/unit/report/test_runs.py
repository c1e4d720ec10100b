"""The list of a job's runs: made of what each has left, and never longer than it may be."""

from dataclasses import asdict

import pytest

from magbatch.report.runs import MOST_RUNS, PastRun, runs_of, with_this

FIRST = PastRun(1.0, 5.0, "failed", 3, "a")
RECORD = {"started": 10.0, "at": 20.0, "done": 50, "before": 20, "host": "b", "runs": [asdict(FIRST)]}


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ({"state": "interrupted", "at": 19.0}, PastRun(10.0, 19.0, "interrupted", 30, "b")),
        (None, PastRun(10.0, 20.0, "killed", 30, "b")),
    ],
)
def test_a_record_tells_of_its_own_run_and_those_before(end: dict[str, object] | None, last: PastRun) -> None:
    assert runs_of(RECORD | {"end": end}) == [FIRST, last]


def test_a_record_of_another_version_tells_what_it_can() -> None:
    assert runs_of(None) == []
    assert runs_of({"at": 20.0, "runs": ["x", {"began": 1}, asdict(FIRST)]}) == [FIRST]


def test_the_last_runs_are_kept() -> None:
    many = runs_of(RECORD | {"runs": [asdict(FIRST)] * 50})
    assert len(many) == MOST_RUNS
    done = with_this(many, 30.0, 7, "c")
    assert (len(done), done[-1].how, done[-1].rows, done[-2].how) == (MOST_RUNS, "complete", 7, "killed")
