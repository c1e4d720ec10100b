"""Columns that stand in the paths of files, and columns whose files have different types."""

import io
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.errors import InputError, SpecError
from magbatch.jobs.preview import preview
from magbatch.ledger.verify import verify
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS
from magbatch.storage.partitions import NULL

QUIET = Console(file=io.StringIO())
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}


def below_keys(job: SmallJob) -> None:
    """Seven rows in three files below `day` and `lang`."""
    job.ask(2, "day=1/lang=de/a.parquet")
    job.ask(2, "day=1/lang=fr%2Fch/b.parquet")
    job.ask(3, "day=12/lang=__HIVE_DEFAULT_PARTITION__/c.parquet")


DAYS = [1, 1, 1, 1, 12, 12, 12]
LANGS = ["de", "de", "fr/ch", "fr/ch", None, None, None]


def in_order(job: SmallJob, kind: str = RESULTS) -> list[dict[str, Any]]:
    return sorted(job.records(kind), key=lambda row: str(row["id"]))


def test_keys_in_paths_are_columns(either_job: SmallJob) -> None:
    job = either_job
    below_keys(job)
    ids = job.row_ids()
    template = "{{ day }} {{ lang if lang is defined else '-' }} {{ question }}"
    del job.plan
    job.set("input", columns={"id": "day", "expected": "lang", "max_tokens": "day"}, carry=["id"], shard_rows=4)
    job.set("prompt", template=template)
    assert job.row_ids() == ids  # the columns that a job reads change no row's id
    frozen = Plan.from_bytes(job.plan.to_bytes())
    assert [(one.name, str(one.type)) for one in frozen.columns][:2] == [("day", "int64"), ("lang", "string")]
    job.plan = frozen
    shown = [
        job.tokenizer.show(prompt.token_ids)
        for shard in range(job.plan.num_shards)
        for prompt in sorted(job.prompts(shard).prompts, key=lambda one: one.row_id)
    ]
    wanted = [f"{day} {lang or '-'} What is" for day, lang in zip(DAYS, LANGS, strict=True)]
    assert all(any(one in text for text in shown) for one in wanted)
    assert [prompt.max_tokens for prompt in job.prompts(0).prompts] == [1, 1, 1, 1]
    job.answer()
    assert job.finalise() == []
    rows = in_order(job)
    assert [row["day"] for row in rows] == DAYS
    assert [row["lang"] for row in rows] == LANGS
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert manifest.totals.graded == 4
    assert verify(job.ledger).problems == ()


@pytest.mark.parametrize("path", ["", "/day=1", "/day=1/lang=de/a.parquet", "/*/lang=*/*.parquet", "/**/a.parquet"])
def test_keys_of_the_whole_path_count_whatever_the_input_is(either_job: SmallJob, path: str) -> None:
    job = either_job
    below_keys(job)
    job.set("input", path=f"{job.input}{path}", carry=["day", "lang"])
    job.answer()
    rows = in_order(job)
    assert (rows[0]["day"], rows[0]["lang"]) == (1, "de")


def test_a_files_own_column_comes_before_its_paths(job: SmallJob) -> None:
    job.ask(2, "day=1/a.parquet", day=[7, None])
    job.ask(2, "day=2/b.parquet")
    job.set("input", carry=["day"], shard_rows=4)
    job.answer()
    assert [row["day"] for row in in_order(job)] == [7, None, 2, 2]


def test_keys_and_own_columns_have_one_type(job: SmallJob) -> None:
    job.ask(2, "day=01/a.parquet", day=pa.array(["x", "y"]).dictionary_encode())
    job.ask(2, "day=02/b.parquet", day=pa.array(["z", None], pa.large_string()))
    job.ask(1, "day=x3/c.parquet")
    job.set("input", carry=["day"], shard_rows=5)
    job.answer()
    assert [row["day"] for row in in_order(job)] == ["x", "y", "z", None, "x3"]


OWN = {
    "binary": (pa.array([b"x", None], pa.binary()), "lang=de", b"de"),
    "large binary": (pa.array([b"x", None], pa.large_binary()), "lang=de", b"de"),
    "fixed binary": (pa.array([b"xy", None], pa.binary(2)), "lang=german", b"german"),
    "dictionary": (pa.array([b"x", None]).dictionary_encode(), "lang=de", b"de"),
    "double": (pa.array([1.5, None]), "lang=7", 7.0),
    "decimal": (pa.array([Decimal("1.5"), None]), "lang=7", Decimal(7)),
    "uint64": (pa.array([1, None], pa.uint64()), "lang=7", 7),
    "date": (pa.array([date(2026, 11, 24), None]), f"lang={NULL}", None),
    "list": (pa.array([["x"], None]), f"lang={NULL}", None),
    "struct": (pa.array([{"x": 1}, None]), f"lang={NULL}", None),
    "boolean": (pa.array([True, None]), f"lang={NULL}", None),
    "uuid": (pa.array([b"0" * 16, None], pa.uuid()), f"lang={NULL}", None),
}


@pytest.mark.parametrize("own", OWN)
def test_a_key_has_the_type_of_the_column_that_other_files_have(job: SmallJob, own: str) -> None:
    values, folder, value = OWN[own]
    job.ask(2, "a.parquet", lang=values)
    job.ask(2, f"{folder}/b.parquet")
    job.set("input", carry=["lang"], shard_rows=4)
    job.answer()
    assert job.finalise() == []
    assert [row["lang"] for row in in_order(job)] == [*values.to_pylist(), value, value]


@pytest.mark.parametrize(
    ("first", "second", "planned"),
    [
        (pa.array([2**53 + 1]), pa.array([1.5]), "double"),
        (pa.array([2**63], pa.uint64()), pa.array([-1]), "int64"),
        (pa.array([2**62], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")), "timestamp[ns]"),
    ],
    ids=str,
)
def test_plan_says_which_numbers_may_not_fit(job: SmallJob, first: pa.Array, second: pa.Array, planned: str) -> None:
    job.ask(1, "a.parquet", n=first)
    job.ask(1, "b.parquet", n=second)
    job.set("input", carry=["n"])
    assert preview(job.spec()).notes == [
        f"column 'n' is {first.type} in {job.input}/a.parquet and {planned} in the job: "
        "a value that does not fit makes its row a dead letter"
    ]


def test_plan_says_nothing_of_numbers_that_fit(job: SmallJob) -> None:
    job.ask(1, "a.parquet", n=pa.array([1], pa.int32()))
    job.ask(1, "b.parquet", n=pa.array([1.5]))
    job.set("input", carry=["n"])
    assert preview(job.spec()).notes == []


@pytest.mark.parametrize("values", [[True], [date(2026, 11, 24)], [["x"]], [{"x": 1}]], ids=str)
def test_a_key_that_has_no_type_with_a_column_is_refused_by_its_file(job: SmallJob, values: list[Any]) -> None:
    job.ask(2, "a.parquet", lang=pa.array(values * 2))
    job.ask(1, "lang=de/b.parquet")
    job.set("input", carry=["lang"])
    with pytest.raises(
        InputError, match=r"lang=de/b\.parquet: the column 'lang' is string here, but .* in other files"
    ):
        job.plan  # noqa: B018


def test_a_key_that_a_path_lacks_is_a_column_that_a_file_lacks(job: SmallJob) -> None:
    job.ask(2, "day=1/a.parquet")
    job.ask(2, "b.parquet")
    job.set("input", carry=["day"])
    with pytest.raises(InputError, match=r"b\.parquet: lacks the column 'day'; it has \['id', 'question'\]"):
        job.plan  # noqa: B018
    job.set("input", on_bad_file="dead_letter")
    assert [problem for _, problem in job.plan.bad_files()] == [
        f"{job.input}/b.parquet: lacks the column 'day'; it has ['id', 'question']"
    ]


def test_a_column_that_is_nowhere_is_said_with_those_of_the_paths(job: SmallJob) -> None:
    job.ask(2, "day=1/lang=de/a.parquet")
    job.set("input", carry=["dya"])
    with pytest.raises(SpecError) as said:
        job.plan  # noqa: B018
    assert str(said.value) == (
        "input.carry: no input file has a column 'dya'; they have ['id', 'question'], and in its path ['day', 'lang']"
    )


def test_rows_are_grouped_by_a_key_as_they_are(job: SmallJob) -> None:
    below_keys(job)
    job.set("input", group="lang")
    assert preview(job.spec()).notes[-1] == ("input.group: 'lang' is in the paths: the rows of a file share it already")
    assert job.plan.rows == 7


def test_a_job_may_read_nothing_but_keys(job: SmallJob) -> None:
    below_keys(job)
    job.set("input", columns={}, carry=["day"], shard_rows=4)
    job.set("prompt", template="Say {{ day }}.")
    job.answer()
    assert sorted(row["day"] for row in job.records()) == DAYS
    assert verify(job.ledger).problems == ()


def test_damage_spares_the_keys_of_the_rows_before_it(job: SmallJob) -> None:
    """A value that is not text fails its row alone, even if other files have columns with the path's names."""
    job.write(pa.table({"id": ["a0", "a1"], "question": pa.array([b"What?", b"\xff"])}), "day=3/a.parquet")
    job.set("input", carry=["day"])
    job.answer()
    assert [(row["id"], row["day"]) for row in job.records()] == [("a0", 3)]
    assert [row["day"] for row in job.records(ERRORS)] == [None]
