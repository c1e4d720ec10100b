"""The benchmark of grouping: two jobs that differ only in `input.group`, on an engine that holds few documents."""

from pathlib import Path

import pytest

from magbatch.bench.prefixes import CACHED_DOCUMENTS, DOCUMENT_TOKENS, DOCUMENTS, GROUPS, TINY, grouped_job
from magbatch.bench.process import Machine
from magbatch.spec import JobSpec


def spec(machine: Machine, group: str) -> JobSpec:
    return JobSpec.model_validate(grouped_job(machine, Path("/in"), Path("/out"), group))


def test_the_two_jobs_differ_in_their_grouping_alone() -> None:
    none, auto = (spec(Machine(TINY, {}, 0), group).model_dump() for group in GROUPS)
    assert (none["input"].pop("group"), auto["input"].pop("group")) == GROUPS
    assert none == auto


@pytest.mark.parametrize(("model", "bounded"), [(TINY, True), ("/checkpoint", False)])
def test_only_the_tiny_models_cache_is_bounded(model: str, bounded: bool) -> None:
    args = spec(Machine(model, {"max_num_seqs": 8}, 0), "auto").model.engine_args
    assert args["max_num_seqs"] == 8
    assert ("kv_cache_memory_bytes" in args) is bounded


def test_the_documents_do_not_fit_the_cache() -> None:
    assert CACHED_DOCUMENTS < DOCUMENTS
    assert DOCUMENT_TOKENS > 1000
