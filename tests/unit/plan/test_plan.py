import io
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, InputError, ModelError, OutputError, SpecError
from magbatch.model.checkpoint import resolve
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.pipeline.read import ShardReader
from magbatch.plan.make import make_plan, subset_plan
from magbatch.plan.plan import Plan
from magbatch.spec import parse
from magbatch.spec.columns import input_columns


def rows_by_file(plan: Plan) -> dict[str, list[str]]:
    """Row ids in the order of the plan, by the name of their file."""
    found: dict[str, list[str]] = {}
    for shard in plan.shards():
        for segment in shard.segments:
            found.setdefault(segment.path.rpartition("/input/")[2], []).extend(segment.row_ids())
    return found


def all_ids(plan: Plan) -> list[str]:
    return [row_id for shard in plan.shards() for row_id in shard.row_ids()]


def test_no_rows_are_no_shards(either_job: SmallJob) -> None:
    either_job.ask(0)
    plan = either_job.plan
    assert (plan.rows, plan.num_shards, list(plan.shards()), len(plan.shard_sizes)) == (0, 0, [], 0)
    again = Plan.from_bytes(plan.to_bytes())
    assert (again.rows, again.num_shards, again.columns) == (0, 0, plan.columns)


def test_one_row_is_one_shard(either_job: SmallJob) -> None:
    either_job.ask(1)
    (shard,) = either_job.plan.shards()
    assert shard.rows == 1
    assert shard.row_ids() == ["cb8eb0d4cd41-000000000"]  # this id is in users' outputs: it may never change


def test_many_small_files_share_shards(either_job: SmallJob) -> None:
    for number in range(20):
        either_job.ask(3, f"{number:02d}.parquet")
    either_job.ask(0, "empty.parquet")
    either_job.set("input", shard_rows=16)
    plan = either_job.plan
    assert plan.shard_sizes.tolist() == [16, 16, 16, 12]
    assert [shard.rows for shard in plan.shards()] == [16, 16, 16, 12]
    assert len(set(all_ids(plan))) == 60
    assert len(plan.shard(0).segments) == 6
    assert plan.num_files() == 20


def test_one_big_file_is_cut_into_consecutive_shards(job: SmallJob) -> None:
    job.ask(1000)
    job.set("input", shard_rows=300)
    starts = [(segment.start, segment.rows) for shard in job.plan.shards() for segment in shard.segments]
    assert starts == [(0, 300), (300, 300), (600, 300), (900, 100)]
    assert all_ids(job.plan) == [f"cb8eb0d4cd41-{row:09d}" for row in range(1000)]


@pytest.mark.parametrize(
    ("rows", "replicas", "images", "size"),
    [
        (40, 1, False, 4),  # small jobs get many shards, but not of one row each
        (64 * 32, 1, False, 64),
        (64 * 32, 4, False, 16),
        (20_000, 1, False, 256),  # what Ray costs a shard no longer counts
        (20_000, 1, True, 32),  # a block of decoded pages has to fit into Ray's object store
        (40, 1, True, 4),
    ],
)
def test_shard_size_follows_the_size_of_the_job(
    job: SmallJob, rows: int, replicas: int, images: bool, size: int
) -> None:
    job.write(pa.table({"question": pa.repeat("?", rows), "scan": pa.nulls(rows, pa.binary())}))
    job.set("input", columns={"prompt": "question", "images": ["scan"] if images else []})
    job.set("replicas", max=replicas)
    sizes = job.plan.shard_sizes
    assert sizes[:-1].tolist() == [size] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= size
    assert sizes.sum() == rows


def test_shards_of_large_rows_have_fewer_of_them(job: SmallJob) -> None:
    """By what a footer says of the columns that the job reads: a shard is one block in memory."""
    job.ask(2048, "a.parquet", note=["small"] * 2048)
    letters = "".join(chr(33 + code) for code in range(90))
    notes = [f"{row} {letters}" * 60_000 for row in range(60)]  # 5.6 MB each, none twice
    job.ask(60, "b.parquet", note=notes)
    job.set("replicas", min=1, max=1)
    before = job.plan.shard_sizes.tolist()
    assert max(before) == 2108 // 32, "a column that is not read counts for nothing"
    plan = make_plan(job.spec(input={"carry": ["note"]}))
    assert all_ids(plan) == all_ids(job.plan)
    sizes = {True: [0], False: [0]}
    for shard in plan.shards():
        large = sum(segment.rows for segment in shard.segments if segment.path.endswith("b.parquet"))
        sizes[large > 0].append(large or shard.rows)
    assert max(sizes[False]) == max(before), "shards of small rows stay as they are"
    assert 5.6 * max(sizes[True]) <= 268 < 5.6 * (max(sizes[True]) + 20)
    assert sum(sizes[True]) == 60
    own = make_plan(job.spec(input={"carry": ["note"], "shard_rows": 100}))
    assert max(own.shard_sizes.tolist()) == 100, "what the spec says stands"


def test_row_ids_depend_on_their_file_and_position_alone(either_job: SmallJob) -> None:
    either_job.ask(5, "m.parquet")
    either_job.ask(7, "sub/m.parquet")
    before = rows_by_file(either_job.plan)
    assert len(set(before["m.parquet"]) | set(before["sub/m.parquet"])) == 12

    either_job.ask(4, "a.parquet")  # listed before them
    either_job.ask(4, "z.parquet")
    for shard_rows in (1, 3, 100):
        after = rows_by_file(make_plan(either_job.spec(input={"shard_rows": shard_rows})))
        assert after.keys() == {"a.parquet", "m.parquet", "sub/m.parquet", "z.parquet"}
        assert {name: after[name] for name in before} == before
    as_glob = make_plan(either_job.spec(input={"path": f"{either_job.input}/m.*"}))
    assert rows_by_file(as_glob) == {"m.parquet": before["m.parquet"]}
    as_file = make_plan(either_job.spec(input={"path": f"{either_job.input}/m.parquet"}))
    assert rows_by_file(as_file) == {"m.parquet": before["m.parquet"]}


def test_the_same_input_has_the_same_row_ids_wherever_it_lies(tmp_path: Path, s3: str) -> None:
    found = []
    for number, root in enumerate([str(tmp_path / "here"), str(tmp_path / "there"), f"{s3}/a", f"{s3}/b"]):
        job = SmallJob(tmp_path / str(number), root)
        job.ask(3)
        job.ask(3, "sub/b.parquet")
        found.append(rows_by_file(job.plan))
    assert found == [found[0]] * 4


@pytest.mark.parametrize("limit", [1, 2, 7, 50, 99, 100])
def test_a_limit_takes_exactly_that_many_rows_evenly_spread(job: SmallJob, limit: int) -> None:
    for number, rows in enumerate([1, 0, 60, 5, 34]):
        job.ask(rows, f"{number}.parquet")
    everything = {row_id: index for index, row_id in enumerate(all_ids(job.plan))}
    plan = make_plan(job.spec(), limit)
    chosen = [everything[row_id] for row_id in all_ids(plan)]
    assert plan.rows == len(chosen) == len(set(chosen)) == limit
    gaps = {after - before for before, after in pairwise([*chosen, 100])}  # the last one stands for what follows it
    assert chosen[0] == 0
    assert max(gaps) - min(gaps) <= 1, chosen
    assert all_ids(make_plan(job.spec(), limit)) == all_ids(plan)


def test_a_limit_above_the_input_takes_all_of_it(job: SmallJob) -> None:
    job.ask(5)
    assert all_ids(make_plan(job.spec(), 6)) == all_ids(job.plan)


def test_a_limit_over_no_rows_is_no_rows(job: SmallJob) -> None:
    job.ask(0)
    assert make_plan(job.spec(), 6).rows == 0


def test_a_limit_leaves_bad_files_out(job: SmallJob) -> None:
    job.ask(4)
    job.put("input/b.parquet", b"no Parquet")
    plan = make_plan(job.spec(input={"on_bad_file": "dead_letter"}), 3)
    assert plan.rows == 3
    assert plan.bad_files() == []


# Files that cannot be used


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


def test_no_data_is_read(either_job: SmallJob) -> None:
    either_job.ask(5000)
    data = bytearray(either_job.store.read("input/a.parquet"))
    footer = int.from_bytes(data[-8:-4], "little")
    data[4 : -8 - footer] = b"\xff" * (len(data) - 12 - footer)
    either_job.put("input/a.parquet", bytes(data))
    with pytest.raises(OSError, match=r"\S"):
        pq.read_table(io.BytesIO(bytes(data)))
    assert either_job.plan.rows == 5000


def test_a_glob_that_yields_a_file_twice_has_it_once(either_job: SmallJob) -> None:
    job = either_job
    job.ask(3, "sub/a.parquet")
    assert make_plan(job.spec(input={"path": f"{job.input}/**/**/*.parquet"})).rows == 3
    assert make_plan(job.spec(input={"path": f"{job.input}/**/*.parquet"})).rows == 3


def test_a_key_with_an_empty_part_is_read(tmp_path: Path, s3: str) -> None:
    job = SmallJob(tmp_path, s3)
    job.ask(3)
    job.ask(2, "/b.parquet")
    assert make_plan(job.spec()).rows == 5
    asked = [prompt.row_id for shard in job.plan.shards() for prompt in job.preparer(shard).prompts]
    assert len(asked) == 5


@pytest.mark.parametrize(
    "path", ["{root}", "{root}/", "{root}/input/../", "{root}/**/*.parquet", "{root}/*/*/*.parquet"]
)
def test_a_job_that_would_read_its_own_answers_is_refused(either_job: SmallJob, path: str) -> None:
    if ".." in path and either_job.root.startswith("s3://"):
        path = "{root}"  # a key has no parents
    either_job.ask(3)
    with pytest.raises(SpecError, match=r"output\.path .* and input\.path .* lie one inside the other"):
        make_plan(either_job.spec(input={"path": path.format(root=either_job.root)}))


def test_a_job_that_would_write_among_its_input_is_refused(either_job: SmallJob) -> None:
    job = either_job
    job.ask(3)
    for inside in (job.root, job.input, f"{job.input}/answers"):
        with pytest.raises(SpecError, match="lie one inside the other"):
            make_plan(job.spec(output={"path": inside}))
    assert (
        make_plan(job.spec(input={"path": f"{job.input}/*.parquet"}, output={"path": f"{job.input}/answers"})).rows == 3
    )


@pytest.mark.parametrize("name", ["größe 日本", "no-break\u00a0space", "wide\u3000space", "👩\u200d💻", "it's 100% #1"])
def test_a_file_may_have_any_name_that_is_text(either_job: SmallJob, name: str) -> None:
    either_job.ask(2, f"{name}.parquet")
    assert list(rows_by_file(Plan.from_bytes(either_job.plan.to_bytes()))) == [f"{name}.parquet"]
    assert len(either_job.prompts(0).prompts) == 2


def test_nothing_there_is_said(either_job: SmallJob) -> None:
    with pytest.raises(InputError, match=r"input\.path .*input"):
        either_job.plan  # noqa: B018


# Columns


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"input": {"columns": {"prompt": "nope"}}}, "input.columns.prompt"),
        ({"input": {"columns": {"messages": "nope"}}}, "input.columns.messages"),
        ({"input": {"columns": {"prompt": "question", "images": ["nope"]}}}, "input.columns.images"),
        ({"input": {"columns": {"prompt": "question", "id": "nope"}}}, "input.columns.id"),
        ({"input": {"columns": {"prompt": "question", "expected": "nope"}}}, "input.columns.expected"),
        ({"input": {"columns": {"prompt": "question", "max_tokens": "nope"}}}, "input.columns.max_tokens"),
        ({"input": {"carry": ["nope"]}}, "input.carry"),
        ({"prompt": {"template": "{{ question }} {{ nope }}"}}, "prompt.template"),
    ],
)
@pytest.mark.parametrize("on_bad_file", ["fail", "dead_letter"])
def test_a_column_of_no_file_is_the_specs_mistake(
    job: SmallJob, sections: dict[str, Any], field: str, on_bad_file: str
) -> None:
    job.ask(1)
    job.ask(1, "b.parquet")
    job.set("input", on_bad_file=on_bad_file)
    with pytest.raises(SpecError) as refused:
        make_plan(job.spec(**sections))
    assert str(refused.value) == f"{field}: no input file has a column 'nope'; they have ['id', 'question']"


def test_each_column_is_read_once(job: SmallJob) -> None:
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["scan"]}, carry=["question", "id", "kind"])
    job.set("prompt", template="{{ question }} {{ place }} {% for word in words %}{{ word }}{% endfor %}")
    assert sorted(input_columns(job.spec())) == ["id", "kind", "place", "question", "scan", "words"]


TEXT = pa.string()
CHAT = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([TEXT, TEXT], TEXT),
        ([TEXT, pa.large_string()], pa.large_string()),
        ([pa.large_string(), TEXT], pa.large_string()),
        ([pa.dictionary(pa.int8(), TEXT)], TEXT),
        ([pa.large_string(), pa.dictionary(pa.int8(), TEXT)], pa.large_string()),
        ([pa.null()], TEXT),
        ([pa.null(), pa.null()], TEXT),
        ([pa.null(), pa.int64()], pa.int64()),
        ([pa.int32(), pa.null(), pa.int64()], pa.int64()),
        ([pa.null(), pa.null(), pa.dictionary(pa.int8(), TEXT), pa.null()], TEXT),
        ([pa.int64(), pa.int32()], pa.int64()),
        ([pa.float32(), pa.float64()], pa.float64()),
        ([pa.binary(), pa.large_binary()], pa.large_binary()),
        ([CHAT], CHAT),
        ([pa.null(), CHAT], CHAT),
        ([CHAT, pa.list_(pa.struct([("role", TEXT), ("content", pa.null())]))], CHAT),
        ([CHAT, pa.list_(pa.struct([("content", TEXT), ("role", TEXT)]))], CHAT),
    ],
)
def test_the_types_of_a_column_are_brought_together(
    job: SmallJob, kinds: list[pa.DataType], common: pa.DataType
) -> None:
    for number, kind in enumerate(kinds):
        job.write(pa.table({"question": ["?"], "more": pa.nulls(1).cast(kind)}), f"{number}.parquet")
    job.set("input", columns={"prompt": "question"}, carry=["more"])
    assert job.plan.columns == pa.schema([("question", TEXT), ("more", common)])
    assert job.plan.rows == len(kinds)


def test_a_file_that_is_refused_leaves_no_trace_in_the_types(job: SmallJob) -> None:
    nulls = pa.nulls(1)
    kinds = [
        {"x": nulls, "y": [[1]], "question": ["?"]},
        {"x": [1], "y": ["text"], "question": ["?"]},  # refused for y: its x says nothing
        {"x": ["text"], "y": [[2]], "question": ["?"]},
    ]
    for name, columns in zip("abc", kinds, strict=True):
        job.write(pa.table(columns), f"{name}.parquet")
    job.set("input", columns={"prompt": "question"}, carry=["x", "y"], on_bad_file="dead_letter")
    assert [path for path, _ in job.plan.bad_files()] == [f"{job.input}/b.parquet"]
    assert job.plan.columns.field("x").type == TEXT


def test_one_odd_file_does_not_turn_the_others_away(job: SmallJob) -> None:
    job.write(pa.table({"id": ["x"], "question": [1]}), "a.parquet")
    job.ask(2, "b.parquet")
    job.ask(2, "c.parquet")
    job.set("input", on_bad_file="dead_letter")
    ((path, problem),) = job.plan.bad_files()
    assert path == f"{job.input}/a.parquet"
    assert problem == f"{path}: the column 'question' is int64 here, but string in other files"
    assert job.plan.rows == 5


@pytest.mark.parametrize("first", [TEXT, pa.string_view()])
def test_text_is_text_in_whatever_layout_a_writer_kept_it(job: SmallJob, first: pa.DataType) -> None:
    for name, kind in (("a", first), ("b", pa.string_view()), ("c", TEXT)):
        job.write(
            pa.table({"id": pa.array(["i"], kind), "question": pa.array([f"What is {name}?"], kind)}), f"{name}.parquet"
        )
    assert job.plan.columns == pa.schema([("question", TEXT), ("id", TEXT)])
    assert len(job.prompts(0).prompts) == 3


def test_bytes_are_text_where_a_prompt_shows_them(job: SmallJob) -> None:
    order = pa.array([{"no": b"4711"}, {"no": b"\xff"}], pa.struct([("no", pa.binary())]))
    job.write(pa.table({"name": pa.array(["Café".encode()] * 2, pa.binary()), "order": order, "scan": [b"\xff"] * 2}))
    job.set("input", columns={"prompt": None, "id": "name"}, carry=["scan"])
    job.set("prompt", template="{{ name }}: {{ order.no }}")
    assert job.plan.columns.field("scan").type == pa.binary()
    work = job.prompts(0)
    (prompt,), (letter,) = work.prompts, work.failed
    assert "[INST]Café: 4711[/INST]" in job.tokenizer.show(prompt.token_ids)
    assert letter.code is ErrorCode.ROW_UNREADABLE
    assert "column 'order'" in letter.message


@pytest.mark.parametrize("column", ["images", "document"])
@pytest.mark.parametrize("in_a_list", [True, False])
def test_a_struct_that_is_no_picture_says_which_fields_it_has(job: SmallJob, column: str, in_a_list: bool) -> None:
    scan = {"data": b"x", "mime": "image/png"}
    job.write(pa.table({"id": ["i"], "question": ["?"], "scan": [[scan] if in_a_list else scan]}))
    job.set("input", columns={"prompt": "question", column: ["scan"] if column == "images" else "scan"})
    with pytest.raises(SpecError, match=rf"^input\.columns\.{column}: .*struct<data: .*, mime: string>.*, and an"):
        job.plan  # noqa: B018


# The stored plan


def test_a_plan_freezes_the_version_of_the_model(job: SmallJob, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    job.set("model", source=str(folder), engine="fake", engine_args=job.engine)
    job.ask(3)
    plan = Plan.from_bytes(job.plan.to_bytes())
    assert plan.revision == resolve(job.spec().model)
    assert subset_plan(plan, list(plan.row_ids())[:1], job.spec()).revision == plan.revision
    job.answer()
    assert job.finalise() == []
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert manifest.model_revision == plan.revision

    (folder / "SYSTEM_PROMPT.txt").write_text("You answer otherwise.")
    assert make_plan(job.spec()).revision != plan.revision
    with pytest.raises(ModelError, match="its files are not those that the job was planned with"):
        Preparer(JobContext(plan.pinned(job.spec()), plan.columns))
    old = Plan.from_bytes(without(plan, b"magbatch.revision"))
    assert old.revision is None
    Preparer(JobContext(old.pinned(job.spec()), old.columns))


def without(plan: Plan, key: bytes) -> bytes:
    """A stored plan that lacks an entry, as plans of older versions do."""
    table = pq.read_table(io.BytesIO(plan.to_bytes()))
    return as_parquet(table.replace_schema_metadata({k: v for k, v in table.schema.metadata.items() if k != key}))


def test_a_plan_of_the_version_before_is_read(job: SmallJob) -> None:
    job.ask(3)
    old = Plan.from_bytes(stored(job.plan, drop="digest"))
    assert [segment.digest for shard in old.shards() for segment in shard.segments] == [None]
    assert list(old.row_ids()) == list(job.plan.row_ids())
    read = ShardReader(old.columns)(old.shard(0))
    assert (len(read.row_ids), read.failed) == (3, [])


def test_a_stored_plan_is_the_same_plan(job: SmallJob) -> None:
    chat = [{"role": "user", "content": "héllo"}]
    job.write(pa.table({"talk": pa.array([chat] * 7, CHAT), "naïve": ["ü"] * 7}), "größe/日本.parquet")
    job.write(pa.table({"talk": pa.array([chat] * 2, CHAT), "naïve": pa.nulls(2)}), "z.parquet")
    job.put("input/bad.parquet", b"no Parquet")
    job.set("input", columns={"messages": "talk", "id": "naïve"}, on_bad_file="dead_letter", shard_rows=4)
    plan = job.plan
    again = Plan.from_bytes(plan.to_bytes())
    assert again.columns.equals(plan.columns, check_metadata=True)
    assert list(again.shards()) == list(plan.shards())
    assert again.rows == plan.rows == 10
    assert again.bad_files() == plan.bad_files()
    assert again.to_bytes() == plan.to_bytes()


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def stored(plan: Plan, drop: str | None = None, **metadata: str) -> bytes:
    table = pq.read_table(io.BytesIO(plan.to_bytes()))
    kept = {key.decode(): value.decode() for key, value in table.schema.metadata.items()} | metadata
    return as_parquet((table.drop([drop]) if drop else table).replace_schema_metadata(kept))


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: b"",
        lambda plan: b"no Parquet",
        lambda plan: plan.to_bytes()[:-20],
        lambda plan: as_parquet(plan.table),
        lambda plan: stored(plan, **{"magbatch.columns": "no base64!"}),
        lambda plan: stored(plan, **{"magbatch.columns": "AAAA"}),
        lambda plan: stored(plan, drop="start"),
    ],
    ids=["empty", "no parquet", "cut off", "another table", "no base64", "no schema", "lacks a column"],
)
def test_a_damaged_plan_is_an_error_of_the_output(job: SmallJob, damage: Any) -> None:
    job.ask(3)
    assert list(Plan.from_bytes(stored(job.plan)).shards()) == list(job.plan.shards())
    with pytest.raises(OutputError, match=r"_magbatch/plan\.parquet is damaged"):
        Plan.from_bytes(damage(job.plan))


def test_a_file_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    name = os.fsencode(folder) + b"/bad-\xff.parquet"
    pq.write_table(pa.table({"question": ["What is 1?"]}), tmp_path / "good.parquet")
    os.link(tmp_path / "good.parquet", name)
    spec = parse(
        f"name: x\nmodel: {{source: builtin:tiny}}\ninput: {{path: {folder}, columns: {{prompt: question}}}}\n"
        f"output: {{path: {tmp_path}/out}}\n"
    )
    with pytest.raises(InputError, match="not valid text"):
        make_plan(spec)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [("rows", -1, "below 0"), ("rows", None, "1 nulls"), ("shard", None, "1 nulls"), ("path", None, "1 nulls"),
     ("start", -5, "below 0"), ("code", "no_such_code", "'no_such_code', which is not an error code")],
)  # fmt: skip
def test_a_plan_that_nobody_can_count_with_is_damaged(job: SmallJob, column: str, value: Any, named: str) -> None:
    job.ask(3)
    table = job.plan.table
    at, kind = table.schema.get_field_index(column), table.schema.field(column)
    plan = replace(job.plan, table=table.set_column(at, kind, pa.array([value] * table.num_rows, kind.type)))
    with pytest.raises(OutputError, match=f"plan.parquet is damaged: .*{named}"):
        Plan.from_bytes(plan.to_bytes())
