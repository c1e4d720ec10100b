"""Each job has its least, then priorities what they want; a replica goes to the job with the fewest devices."""

import doctest
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magbatch.fleet import fair as fair_module
from magbatch.fleet.claim import MIN_SIZE, Claim
from magbatch.fleet.fair import fair
from magbatch.fleet.sharing import MAX_JOBS


def claim(job: str, holds: int, waiting: int = 0, **other: Any) -> Claim:
    return Claim(
        **{"job": job, "kind": "GPU", "size": 1.0, "priority": 0, "least": 0} | other, holds=holds, waiting=waiting
    )


@pytest.mark.parametrize(
    ("claims", "shares"),
    [
        ([claim("a", 3, 2), claim("b", 0, 3)], {"a": 2, "b": 1}),
        ([claim("a", 4), claim("b", 0, 9)], {"a": 2, "b": 2}),
        ([claim("a", 4), claim("b", 0, 1)], {"a": 3, "b": 1}),
        ([claim("a", 4, least=3), claim("b", 0, 9)], {"a": 3, "b": 1}),
        ([claim("a", 4), claim("b", 0, 9, priority=1)], {"a": 0, "b": 4}),
        ([claim("a", 4, least=1), claim("b", 0, 9, priority=1)], {"a": 1, "b": 3}),
        ([claim("a", 4), claim("b", 0, 3, priority=1)], {"a": 1, "b": 3}),
        ([claim("a", 4, priority=1), claim("b", 0, 9)], {"a": 4, "b": 0}),
        ([claim("a", 4), claim("b", 0, 1, size=2.0)], {"a": 2, "b": 1}),
        ([claim("a", 3), claim("b", 0, 2, size=4.0)], {"a": 3, "b": 0}),  # all there is would not be enough for one
        ([claim("a", 1, 39), claim("b", 1, 39)], {"a": 1, "b": 1}),
    ],
)  # fmt: skip
def test_fair_shares(claims: list[Claim], shares: dict[str, int]) -> None:
    assert fair(claims) == shares


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.integers(0, 9), st.integers(0, 2), st.integers(0, 3), st.sampled_from([1.0, 2.0, 4.0])
        ),
        max_size=5,
    ),
    st.integers(0, 4),
)
def test_shares_are_never_more_than_there_is_or_is_wanted(
    jobs: list[tuple[int, int, int, int, float]], free: int
) -> None:
    claims = [
        claim(str(number), holds, waiting, priority=priority, least=least, size=size)
        for number, (holds, waiting, priority, least, size) in enumerate(jobs)
    ]
    shares = fair(claims, free)
    assert sum(shares[one.job] * one.size for one in claims) <= free + sum(one.holds * one.size for one in claims)
    for one in claims:
        assert min(one.least, one.holds) <= shares[one.job] <= one.holds + one.waiting


def _one_by_one(claims: list[Claim], free: float) -> dict[str, int]:
    """`fair` by its definition: each replica, one after the other, to the poorest that may have it."""
    devices = free + sum(one.holds * one.size for one in claims)
    shares = {one.job: 0 for one in claims}
    rounds = [[(one, min(one.least, one.holds)) for one in claims]]
    for priority in sorted({one.priority for one in claims}, reverse=True):
        rounds.append([(one, one.holds + one.waiting) for one in claims if one.priority == priority])
    for among in rounds:
        while able := [one for one, most in among if shares[one.job] < most and one.size <= devices]:
            poorest = min(able, key=lambda one: shares[one.job] * one.size)
            shares[poorest.job] += 1
            devices -= poorest.size
    return shares


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(0, 40),
            st.integers(-1, 1),
            st.integers(0, 9),
            st.one_of(st.sampled_from([0.5, 1.0, 1.5, 8.0]), st.integers(1, 200).map(lambda eighths: eighths / 8)),
        ),
        max_size=6,
    ),
    st.integers(0, 9),
)
def test_many_at_once_are_shared_as_one_by_one(jobs: list[tuple[int, int, int, int, float]], free: int) -> None:
    claims = [
        claim(str(number), holds, waiting, priority=priority, least=least, size=size)
        for number, (holds, waiting, priority, least, size) in enumerate(jobs)
    ]
    assert fair(claims, free) == _one_by_one(claims, free)


def test_sizes_that_have_little_in_common_cost_few_steps() -> None:
    claims = [
        claim(str(number), 10_000, 10_000, size=MIN_SIZE + number * 0.37, least=9000) for number in range(MAX_JOBS)
    ]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        shares = fair(claims)
    finally:
        sys.setprofile(None)
    assert sum(shares.values()) > 9000 * MAX_JOBS
    assert calls < 500 * MAX_JOBS


def test_the_worked_example_is_right() -> None:
    assert doctest.testmod(fair_module).failed == 0
