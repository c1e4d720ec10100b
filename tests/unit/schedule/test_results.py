"""A scheduler ends with the worst of its results; programs read them as JSON."""

import pytest
from support.schedules import NOW

from magbatch.errors import InputError, StorageError
from magbatch.schedule.results import EndedRun, Problem, one_line, worst


@pytest.mark.parametrize(("codes", "code"), [([], 0), ([0, 1], 1), ([0, 3, 2], 3), ([-9, 0], 4), ([137], 4)])
def test_the_worst_code_counts_and_a_killed_run_counts_as_a_defect(codes: list[int], code: int) -> None:
    assert worst([EndedRun("daily", NOW, one) for one in codes]) == code


def test_a_problem_has_the_code_of_its_error() -> None:
    assert Problem.of("a.yaml", StorageError("s3://b: 503", passing=True)).exit_code == 3
    assert Problem.of("a.yaml", InputError("input.path: nothing there")).to_dict() == {
        "spec": "a.yaml", "problem": "input.path: nothing there", "exit_code": 2,
    }  # fmt: skip
    assert Problem.of("a.yaml", ValueError("odd")).exit_code == 2


def test_results_have_a_json_form() -> None:
    assert EndedRun("daily", NOW, 3).to_dict() == {"job": "daily", "tick": NOW.isoformat(), "exit_code": 3}


def test_an_error_that_is_not_a_jobs_is_shown_with_its_type() -> None:
    assert one_line(InputError("input.path: nothing there")) == "input.path: nothing there"
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
