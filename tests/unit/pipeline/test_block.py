"""A block is one record that holds a shard, and gives it back unchanged."""

from decimal import Decimal

import pyarrow as pa
import pytest

from magbatch.errors import ErrorCode, Step
from magbatch.pipeline.block import BLOCK_SCHEMA, ShardPrompts, from_block, joined, to_block, unread
from magbatch.rows import DeadLetter, Image, PageGroup, Prompt, as_ids


def through_a_block(work: ShardPrompts) -> ShardPrompts:
    (again,) = from_block(to_block(work))
    return again


CARRIED = pa.table(
    {
        "naïve": pa.array(["größe", None, "日本 🦙"]),
        "chat": pa.array(
            [[{"role": "user", "content": "a"}], None, []],
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())])),
        ),
        "kind": pa.array(["x", None, "x"]).dictionary_encode(),
        "price": pa.array([Decimal("1.50"), None, Decimal("-2.25")]),
        "nothing": pa.nulls(3),
        "row_id_of_mine": pa.array([3, 2, 1], pa.int8()),
    }
)


def test_a_block_is_one_record_whatever_the_shard_holds() -> None:
    picture = Image.of(2, 1, bytes(range(6)))
    work = ShardPrompts(
        7,
        [Prompt("r-2", as_ids([5, 6]), [picture, Image.of(1, 1, b"abc")]), Prompt("r-0", as_ids([1, 2, 3]))],
        [DeadLetter("r-1", Step.RENDER, ErrorCode.MISSING_VALUE, "größe ist leer: 日本")],
        CARRIED,
        {"r-0": 0, "r-1": 1, "r-2": 2},
    )
    block = to_block(work)
    assert block.num_rows == 1
    assert block.schema == BLOCK_SCHEMA
    assert (block.column("shard").to_pylist(), block.column("rows").to_pylist()) == ([7], [3])
    again = through_a_block(work)
    assert again.shard == 7
    assert again.prompts == work.prompts[::-1]
    assert again.failed == work.failed
    assert again.positions == work.positions
    assert again.carried.equals(CARRIED)


def test_images_are_made_into_records_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magbatch.pipeline.block.RECORDS_BYTES", 3 * 1000)
    images = [Image.of(10, 10, bytes([shade]) * 300) for shade in range(50)]
    prompts = [Prompt(f"r-{index}", as_ids([index]), [image]) for index, image in enumerate(images)]
    ids = [prompt.row_id for prompt in prompts]
    work = ShardPrompts(1, prompts, [], pa.table({"id": ids}), {one: index for index, one in enumerate(ids)})
    batches = list(pa.ipc.open_stream(to_block(work).column("payload")[0].as_buffer()))
    assert {batch.num_rows for batch in batches} == {8, 2}
    assert through_a_block(work).prompts == prompts


def test_a_row_that_cannot_be_packed_is_a_dead_letter_among_its_neighbours() -> None:
    """A number that is above its column's type."""
    prompts = [Prompt(f"r-{number}", as_ids([number]), total_pages=2**31 if number == 1 else 0) for number in range(4)]
    ids = [prompt.row_id for prompt in prompts]
    work = ShardPrompts(1, prompts, [], pa.table({"id": ids}), {one: index for index, one in enumerate(ids)})
    again = through_a_block(work)
    assert again.prompts == [prompts[0], *prompts[2:]]
    (letter,) = again.failed
    assert (letter.row_id, letter.step, letter.code) == ("r-1", Step.PROMPT, ErrorCode.INTERNAL)
    assert again.carried.column("id").to_pylist() == ids


@pytest.mark.parametrize("carried", [pa.table({"id": pa.array([], pa.string())}), pa.table({})])
def test_a_shard_without_rows_is_a_block(carried: pa.Table) -> None:
    again = through_a_block(ShardPrompts(3, [], [], carried, {}))
    assert (again.shard, again.prompts, again.failed, again.positions) == (3, [], [], {})
    assert again.carried.column_names == carried.column_names


def test_blocks_that_were_joined_come_apart_again() -> None:
    works = [
        ShardPrompts(number, [Prompt(row, as_ids([number]))], [], pa.table({"id": [str(number)]}), {row: 0})
        for number, row in enumerate(["r-0", "r-1", "r-2"])
    ]
    joined = pa.concat_tables([to_block(work) for work in works])
    assert [(work.shard, work.prompts, work.carried.to_pylist()) for work in from_block(joined.slice(1))] == [
        (1, [Prompt("r-1", as_ids([1]))], [{"id": "1"}]),
        (2, [Prompt("r-2", as_ids([2]))], [{"id": "2"}]),
    ]


def test_page_groups_keep_their_prompts_images_and_question() -> None:
    picture = Image.of(1, 1, b"abc")
    groups = [PageGroup(1, 2, as_ids([4, 5]), [picture]), PageGroup(3, 3, as_ids([6]))]
    question = [{"role": "user", "content": [{"text": "größe?"}, {"image": 0}]}]
    prompt = Prompt("r", as_ids(), [picture], 3, groups, question, max_tokens=9, truncated=True)
    assert through_a_block(ShardPrompts(0, [prompt], [], pa.table({"id": ["x"]}), {"r": 0})).prompts == [prompt]


def test_pieces_of_a_shard_are_joined_and_unread_rows_carry_nulls() -> None:
    carry = pa.schema([("id", pa.string())])
    letter = DeadLetter("r-1", Step.READ, ErrorCode.READER_KILLER, "?")
    read = ShardPrompts(5, [Prompt("r-0", as_ids([1]))], [], pa.table({"id": ["x"]}), {"r-0": 0})
    work = joined(5, carry, [read, unread(5, carry, letter)])
    assert (work.shard, [prompt.row_id for prompt in work.prompts], work.failed) == (5, ["r-0"], [letter])
    assert work.carried.column("id").to_pylist() == ["x", None]
    assert work.positions == {"r-0": 0, "r-1": 1}
    assert joined(5, carry, []).carried.schema == carry
