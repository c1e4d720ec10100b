"""Input files that cannot be used, and what is to be done about them."""

import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from support.small_job import SmallJob

from magbatch.errors import InputError
from magbatch.jobs.preview import preview

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
    assert preview(job.spec())["notes"] == []
    job.put("input/_SUCCESS", b"")
    job.put("input/_old/x.csv", b"")
    job.put("input/.x.parquet.crc", b"")
    assert preview(job.spec())["notes"] == []
    for name in ("x.csv", "b/y.csv", "b/z.json"):
        job.put(f"input/{name}", CSV)
    assert preview(job.spec())["notes"] == ["3 files that are not *.parquet were passed over: 2 .csv, 1 .json"]


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
        "Mend them, or set input.on_bad_file: dead_letter to run the rest."
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
