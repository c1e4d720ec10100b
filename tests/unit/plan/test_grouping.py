"""Rows that share a long prefix stand next to each other, and every row is in one shard, once."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.grouped_rows import FIRST, LONG, ask_about, in_order, positions, runs, shuffled, text
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, SpecError
from magbatch.jobs.preview import preview
from magbatch.pipeline.read import read_together
from magbatch.plan.footers import PrefixColumn, column_stats
from magbatch.plan.grouping import GroupedFile, arrange
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.rows import Segment
from magbatch.storage.inputs import stat_input


def all_rows(path: str, rows: int) -> Segment:
    now = stat_input(path)
    return Segment(path, "k", now.size, now.tag, 0, rows)


def test_rows_of_one_text_stand_side_by_side_in_one_shard(texts: SmallJob) -> None:
    numbers, plan = shuffled(80, 10), texts.plan
    assert plan.group == "text"
    assert plan.notes == ("rows with the same 'text' are placed side by side: 8.0 at a time",)
    first_met = list(dict.fromkeys(numbers))
    assert runs(numbers, plan) == [[number] for number in first_met]
    assert plan.shard_sizes.tolist() == [8] * 10
    assert [shard == sorted(shard) for shard in positions(plan)] == [True] * 10  # within a group, the file's order
    assert sorted(texts.row_ids()) == sorted(make_plan(texts.spec(input={"group": "none"})).row_ids())


def test_what_they_share_is_the_beginning_of_their_prompts(texts: SmallJob) -> None:
    def beginnings() -> Iterator[tuple[int, int]]:
        """Tokens that all prompts of a shard begin with, and tokens of its shortest prompt, for each shard."""
        for shard in range(texts.plan.num_shards):
            prompts = [prompt.token_ids for prompt in texts.prompts(shard).prompts]
            shared = next(at for at, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
            yield shared, min(map(len, prompts))

    whole = len(texts.tokenizer.encode_text(text(0)))
    assert all(whole <= shared < length for shared, length in beginnings())
    del texts.plan, texts.preparer
    texts.set("input", columns={"id": "id", "document": "text", "prompt": "question"}, document={"strings": "text"})
    del texts.sections["prompt"]["template"]
    assert texts.plan.group == "text"
    assert all(whole <= shared < length for shared, length in beginnings())


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"document": "file", "prompt": "question"}, None),
        ({"images": ["file"], "prompt": "question"}, None),
        ({"document": "file", "images": ["question"], "prompt": "question"}, None),
    ],
)
def test_documents_and_images_are_long_however_short_their_names_are(
    texts: SmallJob, columns: dict[str, Any], prompt: str | None
) -> None:
    texts.set("input", columns=columns)
    texts.set("prompt", template=prompt)
    assert texts.plan.group == "file"
    assert max(map(len, runs(shuffled(80, 10), texts.plan))) == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"prompt": {"template": "{{ question }}\n\n{{ text }}"}},  # what varies comes first
        {"prompt": {"template": "{{ file }}: {{ question }}"}},  # too short to matter
        {"prompt": {"template": "{{ number }}: {{ question }}"}},
        {"prompt": {"template": None}, "input": {"columns": {"prompt": "question"}}},
        {"prompt": {"template": None}, "input": {"columns": {"messages": "chat", "document": "file"}}},
        {"input": {"group": "none"}},
    ],
)
def test_rows_that_share_no_long_beginning_keep_their_order(texts: SmallJob, sections: dict[str, Any]) -> None:
    plan = make_plan(texts.spec(**sections))
    assert (plan.group, plan.notes) == (None, ())
    assert in_order(plan) == list(range(80))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([text(row) for row in range(80)], {}),  # all differ
        ([text(row % 60) for row in range(80)], {}),  # few are there twice
        ([f"{row % 5}".ljust(100) for row in range(80)], {}),  # too short to matter
        ([None] * 80, {}),
        ([text(1), text(2), *[None] * 78], {}),
        ([*[text(1)] * 2, *[None] * 78], {"use_dictionary": False}),
        ([text(row % 5) for row in range(80)], {"use_dictionary": False}),  # the footer shows nothing
    ],
)
def test_values_that_do_not_repeat_or_are_short_are_left_alone(
    texts: SmallJob, values: list[Any], options: dict[str, Any]
) -> None:
    texts.write(pa.table({"id": ["x"] * 80, "question": ["?"] * 80, "text": values}), **options)
    assert (texts.plan.group, texts.plan.notes) == (None, ())
    assert in_order(texts.plan) == list(range(80))


def test_a_sample_keeps_its_order(texts: SmallJob) -> None:
    assert make_plan(texts.spec(), limit=20).group is None


def test_values_that_differ_are_not_read_to_the_end(texts: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_about(texts, list(range(20_000)), row_group_size=5000)
    read: list[int] = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(*args, **options):
                read.append(batch.num_rows)
                yield batch

    monkeypatch.setattr("magbatch.plan.grouping.pq.ParquetFile", Counted)
    assert texts.plan.group is None
    assert 0 < sum(read) <= 5000


def test_few_of_many_files_are_looked_at(texts: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        ask_about(texts, [number], f"{number:02d}.parquet")
    opened: list[pq.ParquetFile] = []

    class Counted(pq.ParquetFile):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(self)

    ask_about(texts, [50])
    monkeypatch.setattr("magbatch.plan.grouping.pq.ParquetFile", Counted)
    assert texts.plan.group is None
    assert 0 < len(opened) <= 16  # footers are read elsewhere


@pytest.mark.parametrize("column", ["number", "file", "text"])
def test_a_column_that_is_named_is_taken_whatever_it_is(texts: SmallJob, column: str) -> None:
    ask_about(texts, shuffled(80, 10), use_dictionary=False)
    texts.set("prompt", template="{{ question }}")
    texts.set("input", group=column)
    assert texts.plan.group == column
    assert max(map(len, runs(shuffled(80, 10), texts.plan))) == 1


def test_a_column_that_is_not_there_is_the_specs_mistake(texts: SmallJob) -> None:
    with pytest.raises(SpecError, match=r"^input\.group: no input file has a column 'nope'"):
        make_plan(texts.spec(input={"group": "nope"}))


def test_a_column_of_lists_is_no_group(texts: SmallJob) -> None:
    texts.write(pa.table({"id": ["x"] * 4, "question": ["?"] * 4, "text": ["?"] * 4, "tags": [["a"]] * 4}))
    plan = make_plan(texts.spec(input={"group": "tags"}))
    assert plan.notes == ("input.group: 'tags' is made of other columns: rows are left in their order",)
    assert in_order(plan) == list(range(4))


def test_a_column_that_no_file_lets_be_read_is_said(texts: SmallJob) -> None:
    tags = pa.array([b"\x01"] * 4, pa.binary(1))
    texts.write(pa.table({"id": ["x"] * 4, "question": ["?"] * 4, "text": ["?"] * 4, "tag": tags}))
    assert make_plan(texts.spec(input={"group": "tag"})).group == "tag"
    path = Path(texts.input) / "a.parquet"
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(3)
    begin = chunk.dictionary_page_offset
    data[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    plan = make_plan(texts.spec(input={"group": "tag"}))
    assert (plan.group, in_order(plan)) == (None, list(range(4)))
    assert plan.notes == ("no file's 'tag' can be read as text, bytes or numbers: rows are left in their order",)


@pytest.mark.parametrize(
    ("bound", "value", "note"),
    [
        ("MAX_GROUPED_ROWS", 79, "rows share 'text', but above 79 rows they are left in their order"),
        ("MAX_READ_BYTES", 100, "input.group: text groups them anyway"),
    ],
)
def test_what_is_too_large_to_group_is_said(
    texts: SmallJob, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, note: str
) -> None:
    monkeypatch.setattr(f"magbatch.plan.grouping.{bound}", value)
    shown = preview(texts.spec())
    assert shown.group is None
    assert note in shown.notes[-1]
    assert in_order(texts.plan) == list(range(80))
    forced = make_plan(texts.spec(input={"group": "text"}))
    assert forced.group == (None if bound == "MAX_GROUPED_ROWS" else "text")


IMAGES = [f"{number}.png" for number in range(20)]


@pytest.mark.parametrize(
    ("scans", "columns", "kept"),
    [
        (pa.array(IMAGES), {}, False),
        (pa.array([IMAGES[0]] * 20), {}, True),
        (pa.array([[one] for one in IMAGES]), {}, True),  # values that lie deeper are not looked at
        (pa.array([{"path": one, "bytes": None} for one in IMAGES]), {}, True),
        (pa.array(IMAGES), {"prompt": None, "messages": "chat"}, True),  # what a chat shows comes first
    ],
)
def test_a_plan_that_saw_no_image_twice_turns_the_engines_cache_of_images_off(
    texts: SmallJob, scans: pa.Array, columns: dict[str, Any], kept: bool
) -> None:
    for index, one in enumerate(IMAGES):
        Image.new("RGB", (28, 28), (index, 0, 0)).save(Path(texts.input) / one)
    chats = [[{"role": "user", "content": f"Which color, {one}?"}] for one in IMAGES]
    texts.write(pa.table({"question": IMAGES, "chat": chats, "scan": scans}), "a.parquet")
    texts.set("input", columns={"prompt": "question", "images": ["scan"]} | columns)
    texts.set("prompt", template=None)
    texts.set("model", source="builtin:tiny", engine="vllm", engine_args={})
    shown = preview(texts.spec())
    assert getattr(shown.first, "images", None) == 1, shown.first
    assert shown.settings["model"]["engine_args"].get("mm_processor_cache_gb") == (None if kept else 0)
    sample = preview(texts.spec(), limit=20)  # nobody has looked at more than these
    assert "mm_processor_cache_gb" not in sample.settings["model"]["engine_args"]


def test_a_preview_says_how_rows_are_grouped(texts: SmallJob) -> None:
    shown = preview(texts.spec())
    assert shown.group == "text"
    assert shown.notes[-1] == "rows with the same 'text' are placed side by side: 8.0 at a time"


def test_what_stands_side_by_side_stays_as_it_is_and_is_cut_between_groups(texts: SmallJob) -> None:
    numbers = sorted(shuffled(80, 10))
    ask_about(texts, numbers)
    plan = texts.plan
    assert plan.notes == ("rows with the same 'text' stand side by side already: 8.0 at a time",)
    assert [[(s.start, s.rows) for s in shard.segments] for shard in plan.shards()] == [
        [(start, 8)] for start in range(0, 80, 8)
    ]


def test_a_window_ends_between_two_groups(texts: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magbatch.plan.windows.WINDOW_ROWS", 20)
    ask_about(texts, sorted(shuffled(80, 10)))
    assert positions(texts.plan) == [list(range(start, start + 8)) for start in range(0, 80, 8)]


def test_a_file_that_has_other_rows_than_its_footer_said_keeps_its_order(texts: SmallJob) -> None:
    lead, path = PrefixColumn("text", forced=True), f"{texts.input}/a.parquet"
    footer = column_stats(pq.ParquetFile(path).metadata, lead, ["text", "question"])
    assert footer is not None
    found = arrange(lead, [GroupedFile(all_rows(path, 80), footer)], 4, 10).arrangement
    assert found is not None
    assert found.positions.null_count < len(found.rows)
    assert arrange(lead, [GroupedFile(all_rows(path, 81), footer)], 4, 10).arrangement is None


def test_small_groups_share_a_shard_and_none_is_cut(texts: SmallJob) -> None:
    numbers = shuffled(60, 20)
    ask_about(texts, numbers)
    texts.set("input", shard_rows=7)
    shards = runs(numbers, texts.plan)
    assert sorted(number for shard in shards for number in shard) == list(range(20))
    assert texts.plan.shard_sizes.max() <= 7


def test_one_giant_group_is_cut_for_all_replicas(texts: SmallJob) -> None:
    ask_about(texts, [0] * 2000)
    for replicas, most in [(1, 250), (2, 125), (8, 31)]:
        sizes = make_plan(texts.spec(replicas={"max": replicas})).shard_sizes
        assert len(sizes) >= 8 * replicas
        assert sizes.max() <= most
        assert sizes.max() - sizes.min() <= 1


def test_groups_stay_whole_while_every_replica_gets_its_shards(texts: SmallJob) -> None:
    numbers = shuffled(2000, 20)
    ask_about(texts, numbers)
    two = make_plan(texts.spec(replicas={"max": 2}))
    assert two.shard_sizes.tolist() == [100] * 20
    many = make_plan(texts.spec(replicas={"max": 8}))
    assert many.num_shards == 80
    assert max(map(len, runs(numbers, many))) == 1


def test_documents_with_pictures_keep_their_small_shards(texts: SmallJob) -> None:
    ask_about(texts, shuffled(400, 4))
    texts.set("input", columns={"document": "file", "prompt": "question"})
    texts.set("prompt", template=None)
    assert texts.plan.group == "file"
    assert texts.plan.shard_sizes.max() == 8


@pytest.mark.parametrize(("bound", "value"), [("WINDOW_ROWS", 16), ("WINDOW_BYTES", 16 * (LONG + 100))])
def test_rows_move_within_a_window_alone(
    texts: SmallJob, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(f"magbatch.plan.windows.{bound}", value)
    numbers = shuffled(100, 3)
    ask_about(texts, numbers)
    rows = [
        [int(row_id.rpartition("-")[2]) for shard in window for row_id in shard.row_ids()]
        for window in read_together([*texts.plan.shards()])
    ]
    assert [row for window in rows for row in sorted(window)] == list(range(100))
    assert len(rows) >= 6
    assert all(len(window) <= 18 for window in rows)
    assert any(window != sorted(window) for window in rows)


def test_small_files_share_a_window(either_job: SmallJob) -> None:
    job = either_job
    job.set("prompt", template=FIRST)
    job.set("input", columns={"id": "id"}, on_bad_file="dead_letter")
    for number in range(6):
        ask_about(job, [0, 1, 2], f"{number}.parquet")
    job.put("input/3-bad.parquet", b"no Parquet")
    job.write(pa.table({"id": ["z"], "question": ["?"], "text": ["short"]}), "9.parquet", use_dictionary=False)
    shards = [*job.plan.shards()]
    keys = [[(segment.path.rpartition("/")[2], segment.start) for segment in shard.segments] for shard in shards]
    assert keys[0] == [(f"{number}.parquet", 0) for number in range(3)]  # all files before the bad one
    assert keys[3] == [("3-bad.parquet", 0)]
    assert [segment.code for segment in shards[3].segments] == [ErrorCode.FILE_UNREADABLE]
    assert keys[-1] == [("9.parquet", 0)]
    assert len({*job.plan.row_ids()}) == job.plan.rows == 20
    assert job.plan.table.column("positions").null_count == len(job.plan.table)  # what follows each other needs none
    assert Plan.from_bytes(job.plan.to_bytes()).bad_files() == job.plan.bad_files() != []


def test_a_column_that_cannot_be_read_leaves_its_rows_in_order(texts: SmallJob) -> None:
    sink = io.BytesIO()
    numbers = shuffled(80, 10)
    pq.write_table(pa.table({"text": [text(number) for number in numbers], "question": ["?"] * 80}), sink)
    data = bytearray(sink.getvalue())
    data[4:400] = b"\xff" * 396
    texts.put("input/b.parquet", bytes(data))
    texts.set("input", columns={})
    plan = texts.plan
    assert plan.group == "text"
    of_b = [row_id for row_id in plan.row_ids() if not row_id.startswith(plan.shard(0).segments[0].key)]
    assert [int(row_id.rpartition("-")[2]) for row_id in of_b] == list(range(80))
    assert len({*plan.row_ids()}) == 160
