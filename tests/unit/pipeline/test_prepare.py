import functools
import io
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image as Pillow
from support.small_job import SmallJob

from magbatch.documents.fetch import RowFetcher
from magbatch.errors import ErrorCode, NoBucketError, Step, StorageError
from magbatch.ledger.ledger import Ledger
from magbatch.pipeline.block import ShardPrompts, from_block, to_block
from magbatch.pipeline.prepare import Preparer, StepsOfProcess, prepare
from magbatch.pipeline.read import ShardReader, ShardRows
from magbatch.pipeline.write import ObjectWriter
from magbatch.rows import DeadLetter, Shard
from magbatch.storage.references import References


def png(width: int = 40, height: int = 30) -> bytes:
    sink = io.BytesIO()
    Pillow.new("RGB", (width, height), "red").save(sink, "PNG")
    return sink.getvalue()


def through_a_block(work: ShardPrompts) -> ShardPrompts:
    (again,) = from_block(to_block(work))
    return again


def letters(work: ShardPrompts) -> dict[str, tuple[Step, ErrorCode]]:
    """Step and code of the failed rows, by the user's id."""
    ids = work.carried.column("id").to_pylist()
    return {ids[work.positions[letter.row_id]]: (letter.step, letter.code) for letter in work.failed}


def asked_for(work: ShardPrompts) -> list[str]:
    """The user's ids of the rows that have a prompt."""
    ids = work.carried.column("id").to_pylist()
    return [ids[work.positions[prompt.row_id]] for prompt in work.prompts]


def test_a_job_that_carries_nothing_still_answers(job: SmallJob) -> None:
    job.ask(3, question=["one", None, "three"])
    job.set("input", columns={"prompt": "question"})
    work = job.prompts(0)
    assert [prompt.row_id for prompt in work.prompts] == [job.row_ids()[0], job.row_ids()[2]]
    assert [letter.row_id for letter in work.failed] == [job.row_ids()[1]]
    assert work.carried.column_names == []


# Preparing


def test_a_process_locates_the_checkpoint_once(job: SmallJob) -> None:
    process, spec = StepsOfProcess(), job.spec()
    first = process.of(spec)
    assert first.checkpoint.facts.context == 8192
    again = pickle.loads(pickle.dumps(spec))  # each read task brings a copy of its own
    assert process.of(again) is first
    job.set("sampling", max_tokens=7)
    assert process.of(job.spec()).spec.sampling.max_tokens == 7


def test_a_row_keeps_what_it_carries(either_job: SmallJob) -> None:
    """Files that write the same column in different types; values that real files hold."""
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
    for number, kind in enumerate(kinds):
        ids = [f"{number}-größe", None, f"{number}-日本"]
        table = pa.table({
            "question": pa.array(["What?", "Who?", "Где?"]).cast(kind),
            "id": pa.array(ids).cast(kind),
            "count": pa.array([1, None, 3], [pa.int8(), pa.int64(), pa.null()][number]) if number < 2 else pa.nulls(3),
            "tags": [[{"k": "v", "n": number}], None, []],
        })  # fmt: skip
        either_job.write(table, f"{number}.parquet")
    either_job.set("input", columns={"prompt": "question", "id": "id"}, carry=["count", "tags"], shard_rows=9)
    work = either_job.prompts(0)
    assert [prompt.row_id for prompt in work.prompts] == either_job.row_ids()
    assert work.failed == []
    assert work.carried.schema == either_job.job.carry
    carried = [work.carried.slice(work.positions[row_id], 1).to_pylist()[0] for row_id in either_job.row_ids()]
    assert [row["id"] for row in carried] == [
        value for number in range(3) for value in (f"{number}-größe", None, f"{number}-日本")
    ]
    assert [row["count"] for row in carried] == [1, None, 3, 1, None, 3, None, None, None]
    assert [row["tags"] for row in carried[::3]] == [[{"k": "v", "n": number}] for number in range(3)]
    shown = either_job.tokenizer.show(work.prompts[8].token_ids)
    assert "Где?" in shown


def test_each_row_fails_alone_and_at_its_step(job: SmallJob) -> None:
    rows = {
        "fine": ("Hello", None),
        "null": (None, None),
        "empty": ("", None),
        "long": ("word " * 3000, None),
        "picture": ("Look", [png()]),
        "broken picture": ("Look", [png()[:50]]),
        "big picture": ("Look", [png(200, 200)]),
        "null picture": ("Look", [None]),
        "many pictures": ("Look", [png()] * 3),
        "blanks": (" " * 1_000_100 + "x", None),  # more than tiktoken splits: its fast way panics
        "blanks and a picture": (" " * 1_000_100 + "x", [png()]),
        "many words": ("word " * 300_000, None),
    }
    table = {"id": list(rows), "question": [row[0] for row in rows.values()], "scan": [row[1] for row in rows.values()]}
    job.write(
        pa.table(
            table, schema=pa.schema([("id", pa.string()), ("question", pa.string()), ("scan", pa.list_(pa.binary()))])
        )
    )
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["scan"]}, shard_rows=100)
    job.set("limits", max_images=2, max_image_pixels=10_000)
    work = job.prompts(0)
    assert asked_for(work) == ["fine", "picture"]
    assert [len(prompt.images) for prompt in work.prompts] == [0, 1]
    assert letters(work) == {
        "null": (Step.RENDER, ErrorCode.MISSING_VALUE),
        "empty": (Step.RENDER, ErrorCode.MISSING_VALUE),
        "long": (Step.PROMPT, ErrorCode.PROMPT_TOO_LONG),
        "broken picture": (Step.RENDER, ErrorCode.IMAGE_UNREADABLE),
        "big picture": (Step.RENDER, ErrorCode.IMAGE_TOO_LARGE),
        "null picture": (Step.RENDER, ErrorCode.MISSING_VALUE),
        "many pictures": (Step.RENDER, ErrorCode.TOO_MANY_IMAGES),
        "blanks": (Step.PROMPT, ErrorCode.INVALID_MESSAGES),
        "blanks and a picture": (Step.PROMPT, ErrorCode.INVALID_MESSAGES),
        "many words": (Step.PROMPT, ErrorCode.PROMPT_TOO_LONG),
    }


def test_an_image_that_takes_too_long_is_late_in_a_process_of_its_own(job: SmallJob) -> None:
    """A progressive JPEG whose last scan comes 30,000 times; in the reader's own process nothing would end it."""
    sink = io.BytesIO()
    Pillow.new("RGB", (1400, 1400), "red").save(sink, "JPEG", progressive=True)
    data = sink.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    scans = [png(), data[:-2] + 30_000 * last + b"\xff\xd9", png()]
    chat = [[{"role": "user", "content": [{"image": scan}]}] for scan in scans]
    job.write(pa.table({"id": ["x", "y", "z"], "question": ["?"] * 3, "scan": scans, "chat": chat}))
    job.set("limits", image_timeout_s=3)
    for columns in ({"id": "id", "prompt": "question", "images": ["scan"]}, {"id": "id", "messages": "chat"}):
        job.set("input", columns=columns)
        work = job.prompts(0)
        assert asked_for(work) == ["x", "z"]
        assert letters(work) == {"y": (Step.RENDER, ErrorCode.IMAGE_TIMEOUT)}


def test_a_defect_in_one_row_is_its_dead_letter_and_spares_its_neighbours(
    job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write(pa.table({"id": ["one", "two", "three"], "question": ["?"] * 3, "scan": [None, "a.parquet", None]}))
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["scan"]})

    def defect(*_: Any) -> bytes:
        raise OverflowError("that nobody expects")

    monkeypatch.setattr(RowFetcher, "__call__", defect)
    work = job.prompts(0)
    assert asked_for(work) == ["one", "three"]
    assert letters(work) == {"two": (Step.RENDER, ErrorCode.INTERNAL)}
    assert work.failed[0].message.startswith("OverflowError: ")


def test_a_panic_in_a_library_is_its_rows_dead_letter(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as tiktoken's at a million blanks, which the tokenizer no longer lets so far."""
    monkeypatch.setattr("magbatch.model.tokenizer.MAX_ORDINARY_CHARACTERS", 2_000_000)
    job.write(pa.table({"id": ["one", "two", "three"], "question": ["?", " " * 1_100_000 + "x", "?"]}))
    work = job.prompts(0)
    assert asked_for(work) == ["one", "three"]
    assert letters(work) == {"two": (Step.PROMPT, ErrorCode.INTERNAL)}
    assert work.failed[0].message.startswith("PanicException: ")


def test_rows_that_are_done_are_not_rendered_again(job: SmallJob) -> None:
    job.ask(4, question=[None, "What?", None, "Who?"])
    ids = job.row_ids()
    work = through_a_block(job.preparer(job.plan.shard(0), frozenset(ids[:2])))
    assert [prompt.row_id for prompt in work.prompts] == [ids[3]]
    assert [letter.row_id for letter in work.failed] == [ids[2]]  # the other one would have failed as well
    assert work.carried.num_rows == 2
    assert asked_for(work) == ["a3"]
    nothing = through_a_block(job.preparer(job.plan.shard(0), frozenset(ids)))
    assert (nothing.prompts, nothing.failed) == ([], [])


def test_a_bad_file_is_one_row_that_carries_nothing(job: SmallJob) -> None:
    job.ask(2)
    job.put("input/b.parquet", b"no Parquet")
    job.write(pa.table({"id": ["z"]}), "c.parquet")
    job.set("input", on_bad_file="dead_letter", shard_rows=10)
    work = job.prompts(0)
    assert len(work.prompts) == 2
    codes = {letter.row_id: (letter.step, letter.code) for letter in work.failed}
    unreadable, other_schema = job.row_ids()[2:]
    assert codes == {
        unreadable: (Step.READ, ErrorCode.FILE_UNREADABLE),
        other_schema: (Step.READ, ErrorCode.FILE_SCHEMA),
    }
    assert [work.carried.column("id")[work.positions[row_id]].as_py() for row_id in codes] == [None, None]


def test_a_file_that_changed_since_the_plan_fails_its_rows(job: SmallJob) -> None:
    job.ask(3)
    job.ask(2, "b.parquet")
    job.set("input", shard_rows=10)
    assert job.plan.rows == 5
    job.ask(30)
    work = job.prompts(0)
    assert asked_for(work) == ["b0", "b1"]
    assert [(letter.row_id, letter.code) for letter in work.failed] == [
        (row_id, ErrorCode.FILE_CHANGED) for row_id in job.row_ids()[:3]
    ]


# Values that Arrow can hold and Python cannot


def not_text() -> pa.Array:
    """Three strings. The middle string is not UTF-8, because other writers do not check."""
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffb")])


def far_dates() -> pa.Array:
    return pa.array([1, 10**7, 3], pa.int32()).cast(pa.date32())


def far_times() -> pa.Array:
    return pa.array([1, 2**60, 3], pa.int64()).cast(pa.timestamp("us"))


@pytest.mark.parametrize("values", [far_dates(), far_times()], ids=["dates", "times"])
def test_a_carried_value_is_copied_whatever_it_is(job: SmallJob, values: pa.Array) -> None:
    job.write(pa.table({"id": ["x", "y", "z"], "question": ["?"] * 3, "more": values}))
    job.set("input", carry=["more"])
    work = job.prompts(0)
    assert asked_for(work) == ["x", "y", "z"]
    assert work.carried.column("more").combine_chunks().equals(values)


@pytest.mark.parametrize("values", [not_text(), far_dates(), far_times()], ids=["text", "dates", "times"])
def test_a_value_that_cannot_be_asked_fails_its_row_alone(job: SmallJob, values: pa.Array) -> None:
    job.write(pa.table({"id": ["x", "y", "z"], "question": values}))
    job.set("prompt", template="{{ question }}")
    check_that_the_second_row_fails(job)


def test_a_carried_text_that_is_none_fails_its_row_alone(job: SmallJob) -> None:
    job.write(pa.table({"id": ["x", "y", "z"], "question": ["?"] * 3, "more": not_text()}))
    job.set("input", carry=["more"])
    check_that_the_second_row_fails(job)


def check_that_the_second_row_fails(job: SmallJob) -> None:
    work = job.prompts(0)
    assert asked_for(work) == ["x", "z"]
    (letter,) = work.failed
    assert (letter.row_id, letter.step, letter.code) == (job.row_ids()[1], Step.READ, ErrorCode.ROW_UNREADABLE)


def test_a_value_outside_the_common_type_fails_its_row_alone(job: SmallJob) -> None:
    job.write(pa.table({"id": ["x", "y", "z"], "question": ["?"] * 3, "more": [1, 2**53 + 1, 3]}))
    job.write(pa.table({"id": ["w"], "question": ["?"], "more": [0.5]}), "b.parquet")
    job.set("input", carry=["more"], shard_rows=10)
    work = job.prompts(0)
    assert asked_for(work) == ["x", "z", "w"]
    (letter,) = work.failed
    assert (letter.row_id, letter.step, letter.code) == (job.row_ids()[1], Step.READ, ErrorCode.ROW_UNREADABLE)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_text_that_is_stored_as_bytes_is_asked_as_text(job: SmallJob, kind: pa.DataType) -> None:
    job.write(pa.table({"id": ["x", "y"], "question": pa.array(["What is größe?".encode(), b"\xff\xfe"], kind)}))
    work = job.prompts(0)
    assert asked_for(work) == ["x"]
    assert "[INST]What is größe?[/INST]" in job.tokenizer.show(work.prompts[0].token_ids)
    assert [(letter.step, letter.code) for letter in work.failed] == [(Step.READ, ErrorCode.ROW_UNREADABLE)]


# A read task


def read_task(
    job: SmallJob,
    shards: list[Shard] | None = None,
    may_have_rows: Iterable[int] = (),
    on_wait: Callable[[StorageError], None] | None = None,
) -> Iterator[pa.Table]:
    """The blocks of some shards of a job, or of all of them."""
    named = frozenset(may_have_rows)
    done_rows = functools.partial(job.ledger.look_up, named)
    return prepare(job.job, job.steps, shards or list(job.plan.shards()), named, done_rows, on_wait)


def test_a_read_task_gives_one_block_for_each_shard_and_only_what_is_open(either_job: SmallJob) -> None:
    either_job.ask(12)
    either_job.set("input", shard_rows=4)
    either_job.begin()
    ids = either_job.row_ids()
    finish(either_job, 1, ids[4:6])
    finish(either_job, 2, ids[8:9])  # not named as partly done: nobody asks the ledger about it
    shards = [either_job.plan.shard(index) for index in range(3)]
    blocks = list(read_task(either_job, shards, {1}))
    assert [block.num_rows for block in blocks] == [1, 1, 1]
    found = [(work.shard, [prompt.row_id for prompt in work.prompts]) for block in blocks for work in from_block(block)]
    assert found == [(0, ids[:4]), (1, ids[6:8]), (2, ids[8:])]


class Doors:
    """Shards of a read task: which were begun, and which may end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, closed: set[int]) -> None:
        self.begun: list[int] = []
        self.closed = {shard: threading.Event() for shard in closed}
        prepared = Preparer.__call__

        def call(preparer: Preparer, shard: Shard, done: frozenset[str] = frozenset()) -> ShardPrompts:
            self.begun.append(shard.index)
            if shard.index in self.closed:
                assert self.closed[shard.index].wait(30)
            return prepared(preparer, shard, done)

        monkeypatch.setattr(Preparer, "__call__", call)

    def until(self, begun: list[int]) -> None:
        deadline = time.monotonic() + 30
        while self.begun != begun:
            assert time.monotonic() < deadline, self.begun
            time.sleep(0.01)


def test_one_shard_is_prepared_while_the_block_before_it_waits_to_be_taken(
    job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.ask(12)
    job.set("input", shard_rows=3)
    job.begin()
    doors = Doors(monkeypatch, set())
    blocks = read_task(job)
    next(blocks)
    doors.until([0, 1])
    next(blocks)
    doors.until([0, 1, 2])
    assert [block["shard"][0].as_py() for block in blocks] == [2, 3]


def test_of_long_documents_one_shard_is_prepared_at_a_time(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them would be gigabytes."""
    job.write(pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]}))
    job.set("input", columns={"id": "id", "document": "text"}, shard_rows=1)
    job.set("input", document={"strings": "text", "mode": "text", "overflow": "map_reduce"})
    job.set("prompt", template="What does it say?")
    job.begin()
    doors = Doors(monkeypatch, set())
    blocks = read_task(job)
    next(blocks)
    time.sleep(0.05)  # what would be prepared without need is by now
    assert doors.begun == [0]
    assert [block["shard"][0].as_py() for block in blocks] == [1, 2]


def test_who_takes_no_more_blocks_waits_for_none(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ask(12)
    job.set("input", shard_rows=3)
    job.begin()
    doors = Doors(monkeypatch, {1})
    blocks = read_task(job)
    next(blocks)
    doors.until([0, 1])
    closing = threading.Thread(target=blocks.close)  # type: ignore[attr-defined]
    closing.start()
    closing.join(20)
    closed = not closing.is_alive()
    doors.closed[1].set()
    closing.join()
    assert closed, "it waited for a shard that nobody takes"
    time.sleep(0.05)
    assert doors.begun == [0, 1]


def test_a_store_that_is_away_stops_no_shard_before_the_one_that_met_it(
    job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.ask(6)
    job.set("input", shard_rows=3)
    job.set("output", patience_s=0.1)
    job.begin()
    prepared = Preparer.__call__

    def call(preparer: Preparer, shard: Shard, done: frozenset[str] = frozenset()) -> ShardPrompts:
        if shard.index == 1:
            raise StorageError("the input is away")
        return prepared(preparer, shard, done)

    monkeypatch.setattr(Preparer, "__call__", call)
    blocks = read_task(job)
    assert next(blocks)["shard"].to_pylist() == [0]
    with pytest.raises(StorageError, match="the input is away"):
        next(blocks)


def finish(job: SmallJob, shard: int, row_ids: list[str]) -> None:
    """Commit dead letters for rows: the ledger counts them as done."""
    ledger: Ledger = job.ledger
    carried = pa.table({"id": pa.array(["x"])})
    positions: dict[str, Any] = dict.fromkeys(row_ids, 0)
    writer = ObjectWriter(ledger.store, carried, positions, "model", shard)
    writer.errors([DeadLetter(row_id, Step.READ, ErrorCode.ROW_UNREADABLE, "?") for row_id in row_ids])


def test_a_store_that_is_away_fails_no_row(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is fetched when its bucket is gone for a while. A bucket that only rows name is another matter."""
    job = SmallJob(tmp_path, f"{s3}/job")
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["image"]})
    names = [f"{job.root}/a.png", f"{job.root}/b.png", "s3://a-bucket-of-nobody/c.png"]
    for name in names[:2]:
        job.store.write(name.rpartition("/")[2], png())
    job.ask(3, image=names)
    job.begin()
    away = iter([NoBucketError("gone", passing=True), StorageError("503 SlowDown", passing=True)])
    waited: list[str] = []

    real = References.read

    def moody(self: References, path: str, *arguments: Any) -> bytes:
        if path == names[0] and (error := next(away, None)) is not None:
            raise error
        return real(self, path, *arguments)

    monkeypatch.setattr(References, "read", moody)
    (block,) = read_task(job, on_wait=lambda error: waited.append(str(error)))
    (work,) = from_block(block)
    assert asked_for(work) == ["a0", "a1"]
    assert letters(work) == {"a2": (Step.RENDER, ErrorCode.URL_REFUSED)}
    assert waited == ["gone", "503 SlowDown"]


def test_a_shard_that_cannot_be_read_as_a_whole_is_read_row_by_row(
    job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.ask(5)
    job.set("input", shard_rows=5)
    bad, real = job.row_ids()[2], ShardReader.__call__

    def read(reader: ShardReader, shard: Shard, done: frozenset[str] = frozenset()) -> ShardRows:
        if bad in shard.row_ids():
            raise MemoryError("realloc of size 9000000000 failed")
        return real(reader, shard, done)

    monkeypatch.setattr(ShardReader, "__call__", read)
    work = job.prompts(0)
    assert asked_for(work) == ["a0", "a1", "a3", "a4"]
    assert [(letter.row_id, letter.step, letter.code) for letter in work.failed] == [
        (bad, Step.READ, ErrorCode.ROW_UNREADABLE)
    ]
    assert "realloc of size" in work.failed[0].message


@pytest.mark.parametrize("encoding", ["RLE_DICTIONARY", "DELTA_BYTE_ARRAY", "PLAIN"])
def test_a_shard_whose_rows_take_much_memory_goes_out_in_pieces(job: SmallJob, encoding: str) -> None:
    """A file of kilobytes: its pages hold the text once, and footers do not say how often rows have it."""
    rows, text = 20, "lorem ipsum " * (20_000_000 // 12)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    table = pa.table({"id": [f"a{n}" for n in range(rows)], "question": ["?"] * rows, "context": repeated})
    how: dict[str, Any] = {"store_schema": False}
    if encoding != "RLE_DICTIONARY":
        how |= {"use_dictionary": False, "column_encoding": {"context": encoding}}
    job.write(table, compression="zstd", **how)
    job.set("input", shard_rows=rows, carry=["context"])
    job.begin()
    finish(job, 0, job.row_ids()[:9])
    found = [
        [
            (work.shard, block.nbytes < 130 << 20, [prompt.row_id for prompt in work.prompts], work.carried.num_rows)
            for block in read_task(job, may_have_rows=partly_done)
            for work in from_block(block)
        ]
        for partly_done in ([], [0])
    ]
    for blocks, ids in zip(found, (job.row_ids(), job.row_ids()[9:]), strict=True):
        assert len(blocks) == 4  # also where rows are done: Ray takes the blocks of a second reader for the first one's
        assert {block[:2] for block in blocks} == {(0, True)}
        assert [row_id for block in blocks for row_id in block[2]] == ids
        assert sum(block[3] for block in blocks) == len(ids)


def test_one_bad_value_in_a_struct_fails_its_row_alone(job: SmallJob) -> None:
    times = pa.array([1000, 2000, -2_147_484, 3000], pa.int32()).view(pa.time32("ms"))
    table = pa.table(
        {"id": list("abcd"), "question": ["What?"] * 4, "more": pa.StructArray.from_arrays([times], ["at"])}
    )
    job.write(table)
    job.set("input", carry=["more"])
    work = job.prompts(0)
    assert asked_for(work) == ["a", "b", "d"]
    assert [letter.code for letter in work.failed] == [ErrorCode.ROW_UNREADABLE]
