import json
from typing import Any

import pytest
from support.small_job import SmallJob

from magbatch.engines.base import EngineArgs
from magbatch.replica.board import Slot
from magbatch.replica.losses import Loss
from magbatch.report.history import Point
from magbatch.report.report import Report, Run, SlotUsage, sample_line, settings
from magbatch.report.usage import JobUsage
from magbatch.totals import Totals
from magbatch.versions import versions

TOTALS = Totals(
    answered=1_234_000,
    failed=567,
    records=2_468_000,
    prompt_tokens=9_000_000,
    cached_tokens=1_000,
    reasoning_tokens=8_000_000,
    answer_tokens=7_000,
    graded=3_000,
    right=2_981,
    by_code={"prompt_too_long": 560, "missing_value": 7},
    by_status={"truncated": 4, "complete": 2_467_996},
)


def report(**fields: Any) -> Report:
    run = Run(seconds=100.4, serving_s=50.0, rows=1_000, tokens=400_000, engine_deaths=2)
    data: dict[str, Any] = {
        "job": "november", "output": "s3://acme/out", "planned": 1_234_567, "totals": TOTALS, "duplicate_ids": None,
        "run": run, "settings": {"model": {"engine_args": {"max_num_seqs": 8}}},
    }  # fmt: skip
    return Report(**data | fields)


def test_the_summary_says_what_came_out() -> None:
    assert report().lines() == [
        "1,234,000 of 1,234,567 rows answered, 567 failed",
        "failed by code: missing_value 7, prompt_too_long 560",
        "tokens: 9,000,000 prompt (1,000 cached), 8,000,000 reasoning, 7,000 answer",
        "reasoning: complete 2,467,996, truncated 4",
        "right answers: 2,981 of 3,000 (99.4%)",
        "this run: 1,000 rows in 100 s, 8,000 tokens/s while the engine served",
    ]


def test_the_summary_counts_replaced_replicas_and_says_the_last() -> None:
    spent = JobUsage(lost=3, losses=[Loss(0.0, 1, "a (10.0.0.1)", "its engine died: no memory", "/logs/1.err")])
    (line,) = [line for line in report(spent=spent).lines() if "replaced" in line]
    assert line == (
        "replicas replaced in all runs: 3; the last: replica 1 on a (10.0.0.1) is replaced: its engine died: "
        "no memory; log: /logs/1.err"
    )
    read = Report.from_dict(json.loads(json.dumps(report(spent=spent).to_dict())))
    assert read.spent == spent


def test_the_summary_counts_documents_that_were_cut() -> None:
    (line,) = [
        line for line in report(totals=Totals(answered=2_000, documents_truncated=1_500)).lines() if "doc" in line
    ]
    assert line == "documents: 1,500 of 2,000 were truncated for the model"


def test_the_summary_says_nothing_of_what_was_not() -> None:
    assert report(planned=0, totals=Totals(), run=Run(), duplicate_ids=0).lines() == [
        "0 of 0 rows answered, 0 failed",
        "tokens: 0 prompt (0 cached), 0 reasoning, 0 answer",
    ]


def test_the_summary_counts_ids_that_are_there_twice() -> None:
    (line,) = [line for line in report(duplicate_ids=1_500).lines() if "user id" in line]
    assert line.startswith("1,500 ")


def test_a_run_that_served_no_time_has_no_speed() -> None:
    assert Run(tokens=5).tokens_per_s == 0.0


def test_a_report_is_read_back_as_it_was_stored() -> None:
    stored = json.loads(json.dumps(report(duplicate_ids=3).to_dict()))
    assert Report.from_dict(stored) == report(duplicate_ids=3)


def test_what_a_newer_version_has_stored_beside_it_is_left_out() -> None:
    mine = report(history=[Point(1.0, 2, 3, 4)], replicas=[SlotUsage.of(Slot(0))])
    stored = json.loads(json.dumps(mine.to_dict()))
    for part in (
        stored, stored["totals"], stored["run"], stored["spent"], stored["spent"]["use"], stored["replicas"][0]
    ):  # fmt: skip
        part["later"] = {"x": 1}
    stored["history"][0].append("later")
    assert Report.from_dict(stored) == mine

    assert stored["versions"] == versions()
    assert {"magbatch", "python", "ray", "pyarrow"} <= versions().keys()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "-"),
        ("", ""),
        ("  two\n\n lines\tof it ", "two lines of it"),
        ("größe 日本 🦙", "größe 日本 🦙"),
        ("bell\x07 and \x1b[31mred", "bell· and ·[31mred"),  # nothing of a document reaches the terminal as a command
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 99 + "…"),
    ],
)
def test_a_sample_line_fits_a_terminal(text: str | None, line: str) -> None:
    assert sample_line(text) == line


def test_settings_show_the_arguments_that_were_used(job: SmallJob) -> None:
    job.ask(1)
    shown = settings(job.spec(), EngineArgs(5, 99, {}))
    assert shown["model"] == {
        "source": "builtin:tiny",
        "engine": "fake",
        "revision": None,
        "engine_args": {"max_num_seqs": 99, "max_model_len": 5},
    }
    assert shown["output"]["commit_rows"] == 256  # what nobody set is shown as well
    json.dumps(shown)
