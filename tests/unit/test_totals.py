"""The sums that an object's footer, a replica's report, the metrics and the manifest share."""

import pyarrow as pa
import pytest

from magbatch.schema import ERRORS, RESULTS
from magbatch.totals import LATENCY_BOUNDS_S, LENGTH_BOUNDS_TOKENS, Totals, cumulative


def results(*records: tuple[int, int, int, int, float, str]) -> pa.Table:
    """(sample, prompt tokens, reasoning tokens, answer tokens, latency, status) each."""
    names = ["sample", "prompt_tokens", "reasoning_tokens", "answer_tokens", "latency_s", "reasoning_status"]
    columns = dict(zip(names, map(list, zip(*records, strict=True)), strict=True))
    return pa.table(columns | {"cached_tokens": [1] * len(records)})


TABLE = results((0, 10, 16, 3, 0.1, "complete"), (1, 10, 17, 4, 0.1, "truncated"), (0, 20, 0, 200_000, 7.25, "absent"))


def test_rows_are_counted_once_and_samples_each() -> None:
    totals = Totals.of(RESULTS, TABLE)
    assert (totals.answered, totals.records, totals.rows) == (2, 3, 2)
    assert (totals.prompt_tokens, totals.cached_tokens) == (30, 2), "a prompt is paid once for all samples"
    assert (totals.reasoning_tokens, totals.answer_tokens, totals.generated_tokens) == (33, 200_007, 200_040)
    assert totals.squared_tokens == 19**2 + 21**2 + 200_000**2
    assert totals.latency_ms == 100 + 7250
    assert totals.by_status == {"complete": 1, "truncated": 1, "absent": 1}


def test_a_value_on_a_bound_is_within_it() -> None:
    totals = Totals.of(RESULTS, TABLE)
    assert totals.by_reasoning == {"16": 2, "32": 1}
    assert totals.by_answer == {"16": 2, "+Inf": 1}
    assert totals.by_latency == {"0.1": 1, "10.0": 1}


def test_buckets_are_cumulative_as_prometheus_has_them() -> None:
    found = cumulative({"16": 2, "64": 1, "+Inf": 4}, LENGTH_BOUNDS_TOKENS)
    assert found[:4] == [("16", 2), ("32", 2), ("64", 3), ("128", 3)]
    assert found[-2:] == [("131072", 3), ("+Inf", 7)]
    assert [bound for bound, _ in cumulative({}, LATENCY_BOUNDS_S)][:2] == ["0.1", "0.25"]


def test_dead_letters_are_counted_by_code() -> None:
    totals = Totals.of(ERRORS, pa.table({"error_code": ["a", "b", "a"]}))
    assert (totals.failed, totals.rows, totals.by_code) == (3, 3, {"a": 2, "b": 1})


def test_sums_can_be_added_and_taken_apart() -> None:
    one, other = Totals.of(RESULTS, TABLE), Totals.of(ERRORS, pa.table({"error_code": ["a"]}))
    both = one.plus(other)
    assert both.plus(one, -1) == other
    assert both.plus(other, -1) == one


@pytest.mark.parametrize(
    "kept", [Totals(), Totals.of(RESULTS, TABLE), Totals.of(ERRORS, pa.table({"error_code": ["ü"]}))]
)
def test_a_footer_gives_back_what_was_put_in(kept: Totals) -> None:
    assert Totals.of_footer(kept.to_footer()) == kept
    assert Totals.of_footer({b"ARROW:schema": b"..."}) is None
    assert Totals.of_footer(None) is None
