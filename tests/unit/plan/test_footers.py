"""A footer that is damaged, hostile or encrypted is its file's problem: it ends no plan and takes no memory."""

import base64
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, InputError, StorageError
from magbatch.pipeline.read import ShardReader
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.storage.s3 import s3_client


def file_of(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def with_footer(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A Parquet file with another footer."""
    length = int.from_bytes(data[-8:-4], "little")
    footer = change(data[-8 - length : -8])
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def count(number: int) -> bytes:
    """A field of Thrift's compact protocol that holds a number of rows: one after the field before it, 64 bits."""
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray([0x16])
    while True:
        zigzag, low = zigzag >> 7, zigzag & 0x7F
        out.append(low | (0x80 if zigzag else 0))
        if not zigzag:
            return bytes(out)


def rows_said(number: int, *, everywhere: bool) -> Callable[[bytes], bytes]:
    """A footer of 200 rows that says another number: in all, or in its row group too."""

    def change(footer: bytes) -> bytes:
        assert footer.count(count(200)) >= 2
        return footer.replace(count(200), count(number), -1 if everywhere else 1)

    return change


QUESTIONS = pa.table({"id": [f"i{row}" for row in range(200)], "question": [f"What is {row}?" for row in range(200)]})


def encrypted(footer: bool) -> bytes:
    """A file whose column `question` is encrypted, and its footer if that is wanted."""

    class Kms(pe.KmsClient):
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64decode(key)

    config = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"k": ["question"]}, plaintext_footer=not footer, double_wrapping=False
    )
    factory = pe.CryptoFactory(lambda _: Kms())
    sink = io.BytesIO()
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(sink, QUESTIONS.schema, encryption_properties=properties) as writer:
        writer.write_table(QUESTIONS)
    return sink.getvalue()


def renamed_column(footer: bytes) -> bytes:
    return footer.replace(b"extra", b"\xff\xfeext")


PLAIN = file_of(QUESTIONS, store_schema=False)
NAMED = file_of(QUESTIONS.append_column("extra", pa.array(range(200))), store_schema=False)
BAD = {
    "more rows in all": (with_footer(PLAIN, rows_said(300, everywhere=False)), "says 300 rows, and 200 in its row"),
    "fewer rows in all": (with_footer(PLAIN, rows_said(100, everywhere=False)), "says 100 rows, and 200 in its row"),
    "less than no rows": (with_footer(PLAIN, rows_said(-200, everywhere=True)), "says -200 rows"),
    "rows without end": (with_footer(PLAIN, rows_said(1 << 36, everywhere=True)), "says 68,719,476,736 rows in"),
    "name": (with_footer(NAMED, renamed_column), "a column's name is not UTF-8"),
    "encrypted column": (encrypted(footer=False), "the column 'question' is encrypted"),
    "encrypted footer": (encrypted(footer=True), "its footer is encrypted"),
    "footer longer than the file": (PLAIN[:-8] + b"\xff\xff\xff\x7fPAR1", "longer than the file"),
    "no footer": (PLAIN[:-8], "cut off"),
    "nothing": (b"", "0 bytes are too few for a Parquet file"),
    "zeros": (bytes(5000), "cut off"),
    "a footer of zeros": (with_footer(PLAIN, lambda footer: bytes(len(footer))), "not a readable Parquet file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_footer_is_its_files_problem_alone(job: SmallJob, kind: str) -> None:
    data, problem = BAD[kind]
    job.ask(3)
    job.put("input/bad.parquet", data)
    with pytest.raises(InputError, match="1 of 2 input files cannot be used") as refused:
        make_plan(job.spec())
    assert problem in str(refused.value)
    plan = make_plan(job.spec(input={"on_bad_file": "dead_letter"}))
    assert plan.rows == 4
    ((path, said),) = plan.bad_files()
    assert path == f"{job.input}/bad.parquet"
    assert said.startswith(f"{path}: ")
    assert problem in said
    assert "\n" not in said
    (bad,) = [one for shard in plan.shards() for one in shard.segments if one.problem]
    assert bad.code is ErrorCode.FILE_UNREADABLE


def test_an_encrypted_column_that_the_job_does_not_read_does_not_matter(job: SmallJob) -> None:
    job.put("input/a.parquet", encrypted(footer=False))
    plan = make_plan(job.spec(input={"columns": {"prompt": "id", "id": None}}))
    assert plan.rows == 200
    read = ShardReader(plan.columns)(plan.shard(0))
    assert read.failed == []


def test_a_file_without_rows_may_lack_columns(either_job: SmallJob) -> None:
    either_job.ask(3)
    either_job.write(pa.table({}), "empty.parquet")
    either_job.write(pa.table({"question": pa.array([], pa.int64())}), "none.parquet")
    plan = either_job.plan
    assert (plan.rows, plan.bad_files()) == (3, [])
    assert plan.columns.field("question").type == pa.string()


def test_an_input_of_empty_files_alone_has_no_rows(job: SmallJob) -> None:
    job.write(pa.table({}), "empty.parquet")
    assert make_plan(job.spec()).rows == 0


def test_an_object_may_have_any_name(s3: str, tmp_path: Path) -> None:
    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(3, "/double//slash.parquet")
    assert len(job.prompts(0).prompts) == 3


def test_a_footer_that_does_not_come_is_no_bad_file(s3: str, tmp_path: Path) -> None:
    """Nothing of it is frozen: the plan is made when the storage is back."""
    from botocore.awsrequest import AWSResponse

    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(3)
    job.set("input", on_bad_file="dead_letter")
    tags = {item["Key"]: item["ETag"] for item in s3_client().list_objects_v2(Bucket=s3[5:])["Contents"]}

    def before_send(request: Any, **_: Any) -> AWSResponse:
        headers = {"Content-Length": "1000", "ETag": tags["job/input/a.parquet"]}
        return AWSResponse(request.url, 206, headers, io.BytesIO(b"PAR"))

    s3_client().meta.events.register("before-send.s3.GetObject", before_send)
    try:
        with pytest.raises(StorageError) as refused:
            make_plan(job.spec())
    finally:
        s3_client().meta.events.unregister("before-send.s3.GetObject", before_send)
    assert refused.value.passing
    assert make_plan(job.spec()).rows == 3


@pytest.mark.parametrize("seed", range(40))
def test_no_damaged_file_ends_a_plan_or_its_reading(job: SmallJob, seed: int) -> None:
    """Whatever the damage: the other file's rows come out right, and each planned row comes out once."""
    rng = random.Random(seed)
    data = bytearray(file_of(QUESTIONS, row_group_size=90))
    length = int.from_bytes(data[-8:-4], "little") + 8
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(data) - length, len(data)) if rng.random() < 0.8 else rng.randrange(len(data))
        data[place] = rng.randrange(256)
    job.ask(5)
    job.put("input/bad.parquet", bytes(data))
    plan = Plan.from_bytes(make_plan(job.spec(input={"on_bad_file": "dead_letter"})).to_bytes())
    reader = ShardReader(plan.columns)
    asked: dict[str, str] = {}
    failed: list[str] = []
    for shard in plan.shards():
        read = reader(shard)
        asked |= zip(read.row_ids, read.table.column("question").to_pylist(), strict=True)
        failed += [row_id for row_id, _ in read.failed]
    assert sorted([*asked, *failed]) == sorted(plan.row_ids())
    assert [asked[f"cb8eb0d4cd41-{row:09d}"] for row in range(5)] == [f"What is a{row}?" for row in range(5)]
