"""The rows of the benchmark: the same for every arm, with lengths as reasoning has them."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magbatch.bench.workloads import LONG_TIMES, SIGMA, WORKLOADS, Workload, job, prepare
from magbatch.errors import SpecError

SETTINGS = {"model": "builtin:tiny", "engine_args": {}, "gpus": 0}


def test_lengths_are_lognormal_with_the_mean_that_is_asked_for() -> None:
    free = replace(WORKLOADS["text"], mean_tokens=4000, most_tokens=10**9)
    lengths = free.lengths(20_000, seed=3)
    logs = [math.log(length) for length in lengths]
    assert statistics.mean(lengths) == pytest.approx(free.mean_tokens, rel=0.05)
    assert statistics.median(lengths) == pytest.approx(free.mean_tokens * math.exp(-(SIGMA**2) / 2), rel=0.05)
    assert statistics.pstdev(logs) == pytest.approx(SIGMA, rel=0.02)


def test_a_tail_has_a_hundredth_of_rows_a_hundred_times_as_long() -> None:
    tail = WORKLOADS["tail"]
    lengths = tail.lengths(2000, seed=1)
    long = [place for place, length in enumerate(lengths) if length == LONG_TIMES * tail.mean_tokens]
    assert len(long) == 20
    assert statistics.mean(length for place, length in enumerate(lengths) if place not in long) == pytest.approx(
        tail.mean_tokens, rel=0.15
    )
    assert max(long) - min(long) > 1000  # anywhere: no scheduler could know


@given(st.sampled_from(sorted(WORKLOADS)), st.integers(1, 300), st.integers(0, 2**40))
def test_any_rows_can_be_generated_and_are_the_same_again(name: str, rows: int, seed: int) -> None:
    workload = WORKLOADS[name]
    lengths = workload.lengths(rows, seed)
    assert len(lengths) == rows
    assert all(1 <= length <= workload.most_tokens for length in lengths)
    assert lengths == workload.lengths(rows, seed)


def test_no_two_prompts_begin_alike() -> None:
    questions = [record["question"] for record in WORKLOADS["text"].records(500, seed=1)]
    assert len({question.split()[0] for question in questions}) == 500
    assert questions != [record["question"] for record in WORKLOADS["text"].records(500, seed=2)]


@pytest.mark.parametrize("name", ["text", "image"])
def test_all_arms_read_the_same_rows(name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    prepared = prepare(workload, 20, 7, tmp_path, SETTINGS)
    asked, ready = pq.read_table(prepared.rows), pq.read_table(prepared.prompts)
    assert asked["id"].to_pylist() == ready["id"].to_pylist() == list(prepared.lengths)
    assert asked["tokens"].to_pylist() == ready["tokens"].to_pylist() == list(prepared.lengths.values())
    assert prepared.prompt_tokens == sum(len(ids) for ids in ready["token_ids"].to_pylist())
    if workload.images:
        sizes = zip(ready["width"].to_pylist(), ready["height"].to_pylist(), ready["rgb"].to_pylist(), strict=True)
        assert all(len(rgb) == 3 * width * height for width, height, rgb in sizes)


def test_a_workload_that_does_not_fit_the_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"the workload wide does not suit this model: the prompt has \d+ tokens"):
        prepare(Workload("wide", 10, 100, prompt_words=400), 2, 1, tmp_path, SETTINGS)


def test_the_job_forces_lengths_and_leaves_the_rest_as_it_is() -> None:
    spec = job(WORKLOADS["text"], Path("/in"), Path("/out"), SETTINGS)
    assert spec.sampling.ignore_eos
    assert spec.input.columns.max_tokens == "tokens"
    assert spec.limits.repetition_tokens is None
    assert spec.replicas.max == 1
    assert spec.output == type(spec.output)(path="/out")
