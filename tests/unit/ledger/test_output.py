"""The files that say what the job of an output is."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.book import Book, Breaking
from support.small_job import SmallJob
from support.spoiled_output import of_the_version_before

from magbatch.errors import OutputError, SpecChangedError, StorageError
from magbatch.ledger.layout import PLAN
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify


def test_a_place_without_a_job_says_so(job: SmallJob) -> None:
    job.ask(1)
    assert job.ledger.spec() is job.ledger.plan() is job.ledger.manifest() is None
    assert job.ledger.check_same(job.spec()) is False
    for question in (job.ledger.open_job, lambda: verify(job.ledger)):
        with pytest.raises(OutputError, match="no magbatch job here"):
            question()


def test_a_job_is_read_back_as_it_was_begun(either_book: Book) -> None:
    spec, plan = Ledger(either_book.job.output + "/").open_job()
    assert spec == either_book.spec
    assert list(plan.shards()) == list(either_book.plan.shards())
    assert either_book.ledger.check_same(spec) is True


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({"sampling": {"temperature": 0.1}}, ["sampling.temperature: 0.7 -> 0.1"]),
        ({"sampling": {"seed": 5}}, ["sampling.seed: None -> 5"]),
        ({"prompt": {"system": "Be brief."}}, ["prompt.system: 'none' -> 'Be brief.'"]),
        ({"input": {"carry": ["question"]}}, ["input.carry: [] -> ['question']"]),
        (
            {"limits": {"max_images": 3, "max_prompt_tokens": 9}},
            ["limits.max_images: 10 -> 3", "limits.max_prompt_tokens: 2000 -> 9"],
        ),
        ({"model": {"engine_args": {"max_model_len": 99}}}, ["model.engine_args.max_model_len: None -> 99"]),
    ],
)
def test_another_spec_is_refused_with_the_difference(book: Book, sections: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(SpecChangedError) as refused:
        book.ledger.check_same(book.job.spec(**sections))
    differing = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
    if "model" in sections:
        differing = [line for line in differing if "max_model_len" in line]
    assert differing == lines


def test_what_changes_no_answer_may_change(book: Book) -> None:
    sections: dict[str, Any] = {
        "name": "another-name",
        "replicas": {"min": 2, "max": 5, "cpus": 2.0},
        "output": {"commit_interval_s": 60, "commit_rows": 3},
        "limits": {"max_failed_rows": 9},
        "input": {"shard_rows": 7, "on_bad_file": "dead_letter", "fetch_timeout_s": 1},
        "model": {"engine_args": book.job.engine | {"max_num_seqs": 2}},
    }
    changed = book.job.spec(**sections)
    assert changed != book.spec
    assert book.ledger.check_same(changed) is True


def test_a_start_that_is_interrupted_anywhere_can_be_made_again(job: SmallJob) -> None:
    job.ask(3)
    for at in range(6):
        for moment in ("before", "after"):
            shutil.rmtree(job.output, ignore_errors=True)
            broken = Ledger(job.output)
            broken.store = Breaking(broken.store, at, moment)
            with pytest.raises(StorageError):
                broken.begin(job.spec(), job.plan)
            ledger = Ledger(job.output)
            if ledger.check_same(job.spec()):  # a spec that is there has its plan
                assert ledger.open_job()[1].rows == 3
            else:
                ledger.begin(job.spec(), job.plan)
            assert ledger.open_job()[0] == job.spec()


def test_a_plan_that_does_not_fit_its_checksum_is_used_by_nobody(out: Path) -> None:
    of_the_version_before(out)
    pq.write_table(pq.read_table(out / PLAN), out / PLAN, compression="none")  # the same plan, in other bytes
    with pytest.raises(OutputError, match=r"plan\.parquet: its checksum differs from the manifest's"):
        Ledger(str(out)).complete_job()
