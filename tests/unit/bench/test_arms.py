"""Arms of a benchmark: an arm that skipped work does not count."""

import pytest

from magbatch.bench.arms import Run, check_written
from magbatch.errors import BenchError


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"a": 3}, "arm: 1 of 2 rows were not written, such as b"),
        ({"a": 3, "b": 4}, "arm: 1 rows have other lengths than were forced, such as b: 4 tokens instead of 5"),
    ],
)
def test_an_arm_that_has_not_done_the_work_is_refused(written: dict[str, int], message: str) -> None:
    check_written("arm", {"a": 3, "b": 5}, {"a": 3, "b": 5})
    with pytest.raises(BenchError, match=message):
        check_written("arm", written, {"a": 3, "b": 5})


def test_a_speed_is_tokens_by_seconds() -> None:
    assert Run("raw", 1, 2.0, 10, 600, 40.0).tokens_per_s == 300
