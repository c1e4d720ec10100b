"""Input files that cannot be used, and what is to be done about them."""

import shlex
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, InputError
from magbatch.jobs.preview import preview
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan

CSV = b"id,question\na0,What is 1+1?\n"
JSON = b'{"id": "b0", "question": "What is 1+2?"}\n'


def refusal(job: SmallJob, path: str) -> str:
    job.set("input", path=f"{job.input}{path}")
    with pytest.raises(InputError) as said:
        preview(job.spec())
    return str(said.value)


@pytest.mark.parametrize(
    ("name", "data", "what", "read"),
    [
        ("x.csv", CSV, "CSV", "read_csv"),
        ("x.jsonl", JSON, "JSON", "read_json"),
        ("x.data", JSON, "JSON", "read_json"),
        ("tiny.csv", b"id,q\na,x", "CSV", "read_csv"),
    ],
)
def test_one_file_of_another_format_is_said_with_its_command(
    either_job: SmallJob, name: str, data: bytes, what: str, read: str
) -> None:
    job, path = either_job, f"{either_job.input}/{name}"
    job.put(f"input/{name}", data)
    made = path if "." not in name else path.removesuffix(".csv").removesuffix(".jsonl")
    assert refusal(job, f"/{name}") == (
        f"{path}: not a readable Parquet file: it is {what}; make Parquet of it, and set input.path to {made}.parquet: "
        f"python -c \"import duckdb; duckdb.sql('''COPY (FROM {read}('{path}')) TO '{made}.parquet' ''')\""
    )


def test_a_folder_without_parquet_is_said_with_a_command_for_all_of_it(either_job: SmallJob) -> None:
    job = either_job
    job.put("input/a.csv", CSV)
    job.put("input/b/c.csv.gz", CSV)
    job.put("input/b/d.csv", CSV)
    job.put("input/notes.md", b"# notes")
    job.put("input/_SUCCESS", b"")
    folder = job.input
    assert refusal(job, "") == (
        f"input.path {folder}: no *.parquet file here, but 2 .csv, 1 .csv.gz, 1 .md; make Parquet of them, and set "
        f"input.path to {folder}.parquet: python -c \"import duckdb; duckdb.sql('''COPY (FROM "
        f"read_csv(['{folder}/**/*.csv', '{folder}/**/*.csv.gz'], union_by_name=true)) TO '{folder}.parquet' ''')\""
    )


def test_what_is_made_by_the_command_is_read(job: SmallJob) -> None:
    job.put("input/a.csv", CSV)
    job.put("input/b/b.csv", CSV.replace(b"a0", b"b0"))
    words = shlex.split(refusal(job, "").partition(".parquet: ")[2])
    subprocess.run([sys.executable, *words[1:]], check=True, timeout=60)
    job.set("input", path=f"{job.input}.parquet")
    assert job.plan.rows == 2


def test_parquet_by_another_name_is_named(either_job: SmallJob) -> None:
    either_job.put("input/A.PARQUET", b"")
    assert refusal(either_job, "").endswith(
        f"no *.parquet file here, but 1 .PARQUET; if they are Parquet, name them with a glob: "
        f"input.path: {either_job.input}/**/*.PARQUET"
    )


def test_a_folder_of_other_files_is_counted(either_job: SmallJob) -> None:
    either_job.put("input/a.pdf", b"%PDF")
    either_job.put("input/b.pdf", b"%PDF")
    assert refusal(either_job, "").endswith("no *.parquet file here, but 2 .pdf; magbatch reads Parquet")


def test_files_that_are_passed_over_are_counted_in_a_note(either_job: SmallJob) -> None:
    job = either_job
    job.ask(2)
    assert preview(job.spec()).notes == []
    job.put("input/_SUCCESS", b"")
    job.put("input/_old/x.csv", b"")
    job.put("input/.x.parquet.crc", b"")
    assert preview(job.spec()).notes == []
    for name in ("x.csv", "b/y.csv", "b/z.json"):
        job.put(f"input/{name}", CSV)
    assert preview(job.spec()).notes == ["3 files that are not *.parquet were passed over: 2 .csv, 1 .json"]


def test_a_glob_over_files_of_another_format_has_one_command(job: SmallJob) -> None:
    job.put("input/a.csv", CSV)
    job.put("input/b.csv", CSV)
    folder = job.input
    assert refusal(job, "/*.csv") == (
        "2 of 2 input files cannot be used:\n"
        f"  {folder}/a.csv: not a readable Parquet file: it is CSV\n"
        f"  {folder}/b.csv: not a readable Parquet file: it is CSV\n"
        f"Make Parquet of them, and set input.path to {folder}.parquet: "
        f"python -c \"import duckdb; duckdb.sql('''COPY (FROM read_csv('{folder}/*.csv', union_by_name=true)) TO "
        f"'{folder}.parquet' ''')\""
    )


def test_a_file_of_another_format_among_others(job: SmallJob) -> None:
    job.ask(2)
    job.put("input/b.parquet", CSV)
    folder = job.input
    assert refusal(job, "") == (
        f"1 of 2 input files cannot be used:\n  {folder}/b.parquet: not a readable Parquet file: it is CSV\n"
        f"Make Parquet of such a file: python -c \"import duckdb; duckdb.sql('''COPY (FROM read_csv("
        f"'{folder}/b.parquet')) TO '{folder}/b.made.parquet' ''')\"\n"
        "Fix them, or set input.on_bad_file: dead_letter to run the rest."
    )
    job.set("input", path=folder, on_bad_file="dead_letter")
    assert job.plan.bad_files() == [
        (f"{folder}/b.parquet", f"{folder}/b.parquet: not a readable Parquet file: it is CSV")
    ]


def test_a_parquet_file_by_any_name_is_read(job: SmallJob) -> None:
    job.ask(2)
    table = pq.read_table(f"{job.input}/a.parquet")
    job.write(table, "x.csv")
    job.set("input", path=f"{job.input}/x.csv")
    assert job.plan.rows == 2


def rows_by_file(plan: Plan) -> dict[str, list[str]]:
    """Row ids in the order of the plan, by the name of their file."""
    found: dict[str, list[str]] = {}
    for shard in plan.shards():
        for segment in shard.segments:
            found.setdefault(segment.path.rpartition("/input/")[2], []).extend(segment.row_ids())
    return found


def all_ids(plan: Plan) -> list[str]:
    return [row_id for shard in plan.shards() for row_id in shard.row_ids()]


def cut_off(job: SmallJob) -> str:
    job.ask(100, "bad.parquet")
    whole = job.store.read("input/bad.parquet")
    job.put("input/bad.parquet", whole[: len(whole) // 2])
    return "not a readable Parquet file"


def no_parquet(job: SmallJob) -> str:
    job.put("input/bad.parquet", b"PAR1 and nothing of the kind")
    return "not a readable Parquet file"


def empty(job: SmallJob) -> str:
    job.put("input/bad.parquet", b"")
    return "not a readable Parquet file"


def lacks_a_column(job: SmallJob) -> str:
    job.write(pa.table({"id": ["x"], "Question": ["of another case"]}), "bad.parquet")
    return "lacks the column 'question'; it has ['id', 'Question']"


def other_type(job: SmallJob) -> str:
    job.write(pa.table({"id": ["x"], "question": [1]}), "bad.parquet")
    return "the column 'question' is int64 here, but string in other files"


def column_twice(job: SmallJob) -> str:
    columns = [pa.array(["x"]), pa.array(["one"]), pa.array(["two"])]
    job.write(pa.Table.from_arrays(columns, names=["id", "question", "question"]), "bad.parquet")
    return "question"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (cut_off, ErrorCode.FILE_UNREADABLE),
        (no_parquet, ErrorCode.FILE_UNREADABLE),
        (empty, ErrorCode.FILE_UNREADABLE),
        (lacks_a_column, ErrorCode.FILE_SCHEMA),
        (other_type, ErrorCode.FILE_SCHEMA),
        (column_twice, ErrorCode.FILE_SCHEMA),
    ],
)
def test_a_bad_file_stops_the_job_or_becomes_one_dead_letter(either_job: SmallJob, spoil: Any, code: ErrorCode) -> None:
    either_job.ask(3)
    either_job.ask(2, "z.parquet")
    expected = spoil(either_job)
    with pytest.raises(InputError) as refused:
        make_plan(either_job.spec())
    assert "1 of 3 input files cannot be used" in str(refused.value)
    assert f"{either_job.input}/bad.parquet: " in str(refused.value)
    assert expected in str(refused.value)

    plan = make_plan(either_job.spec(input={"on_bad_file": "dead_letter"}))
    rows = rows_by_file(plan)
    assert {name: len(ids) for name, ids in rows.items()} == {"a.parquet": 3, "bad.parquet": 1, "z.parquet": 2}
    assert plan.rows == 6
    ((path, problem),) = plan.bad_files()
    assert path == f"{either_job.input}/bad.parquet"
    assert expected in problem
    (segment,) = [one for shard in plan.shards() for one in shard.segments if one.problem]
    assert (segment.code, segment.row_ids()) == (code, [segment.key])
    assert len(set(all_ids(plan))) == 6


def test_an_input_of_bad_files_only_is_no_input(job: SmallJob) -> None:
    no_parquet(job)
    with pytest.raises(InputError, match="1 of 1 input files cannot be used"):
        make_plan(job.spec(input={"on_bad_file": "dead_letter"}))


def test_many_bad_files_are_not_all_listed(job: SmallJob) -> None:
    job.ask(1)
    for number in range(25):
        job.put(f"input/bad{number:02d}.parquet", b"no Parquet")
    with pytest.raises(InputError) as refused:
        job.plan  # noqa: B018
    assert "bad19.parquet" in str(refused.value)
    assert "bad20.parquet" not in str(refused.value)
    assert "and 5 more" in str(refused.value)
