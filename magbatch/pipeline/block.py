"""A prepared shard as one Arrow record, and back.

A block is a single record, so Ray can neither split it nor join two into one record.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from magbatch.arrow_types import Field
from magbatch.errors import ErrorCode, Step
from magbatch.rows import DeadLetter, Image, PageGroup, Prompt, as_ids
from magbatch.storage.columns import empty_table

RECORDS_BYTES = 16 << 20  # prompts that become Arrow records at once, in bytes: bounds the second copy of their images
BLOCK_SCHEMA = pa.schema(dict[str, pa.DataType](shard=pa.int64(), rows=pa.int64(), payload=pa.large_binary()))
_IMAGE = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("packed", pa.large_binary())])
_PAGE_GROUP = pa.struct(
    [
        ("first_page", pa.int32()),
        ("last_page", pa.int32()),
        ("token_ids", pa.binary()),
        ("images", pa.list_(_IMAGE)),
    ]
)
_PROMPT_FIELDS: list[Field] = [
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("token_ids", pa.binary()),  # int32 each, in the byte order of the machine
    pa.field("images", pa.list_(_IMAGE)),
    pa.field("total_pages", pa.int32()),
    pa.field("page_groups", pa.list_(_PAGE_GROUP)),
    pa.field("messages", pa.string()),  # JSON
    pa.field("max_tokens", pa.int64()),
    pa.field("truncated", pa.bool_()),
    pa.field("step", pa.string()),
    pa.field("code", pa.string()),
    pa.field("message", pa.string()),
]


@dataclass(slots=True)
class ShardPrompts:
    """A prepared shard, or a piece of a shard.

    Attributes:
        shard: Index of the shard.
        prompts: Rows for the engine.
        failed: Rows that failed before they reached the engine.
        carried: Table of the carried columns, with a row for each prompt and each failed row.
        positions: Row id to its row number in `carried`.
    """

    shard: int
    prompts: list[Prompt]
    failed: list[DeadLetter]
    carried: pa.Table
    positions: dict[str, int]


def unread(shard: int, carry: pa.Schema, letter: DeadLetter) -> ShardPrompts:
    """A shard of one row that could not be read: its carried columns are null."""
    nothing = pa.table([pa.nulls(1, field.type) for field in carry], schema=carry)
    return ShardPrompts(shard, [], [letter], nothing, {letter.row_id: 0})


def joined(shard: int, carry: pa.Schema, pieces: list[ShardPrompts]) -> ShardPrompts:
    """Join the pieces of a shard that were prepared apart."""
    ids = [row_id for piece in pieces for row_id in piece.positions]
    return ShardPrompts(
        shard,
        [prompt for piece in pieces for prompt in piece.prompts],
        [letter for piece in pieces for letter in piece.failed],
        pa.concat_tables([empty_table(carry), *(piece.carried for piece in pieces)]),
        {row_id: position for position, row_id in enumerate(ids)},
    )


def to_block(work: ShardPrompts) -> pa.Table:
    """Pack a shard.

    Returns:
        Table of `BLOCK_SCHEMA` with one record: the shard's index, its number of rows, and the rows as an Arrow stream.
    """
    rows: list[Prompt | DeadLetter] = [*work.prompts, *work.failed]
    order = sorted(rows, key=lambda row: work.positions[row.row_id])
    carried = work.carried.rename_columns([f"carry.{name}" for name in work.carried.column_names])
    schema = pa.schema([*_PROMPT_FIELDS, *carried.schema])
    sink = pa.BufferOutputStream()
    held = sum(prompt.size_bytes for prompt in work.prompts)
    at_once = max(1, len(order) * RECORDS_BYTES // max(held, RECORDS_BYTES))
    with pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(order), at_once):
            table = _records(order[start : start + at_once])
            for name in carried.column_names:
                table = table.append_column(name, carried.column(name).slice(start, at_once))
            writer.write_table(table)
    payload = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, pa.array([0, sink.tell()], pa.int64()).buffers()[1], sink.getvalue()]
    )
    return pa.table([pa.array([work.shard]), pa.array([len(order)]), payload], schema=BLOCK_SCHEMA)


def _records(rows: list[Prompt | DeadLetter]) -> pa.Table:
    """A record for each row; a row that does not fit a record becomes a dead letter and spares its neighbours."""
    schema = pa.schema(_PROMPT_FIELDS)
    try:
        return pa.Table.from_pylist([_record(row) for row in rows], schema=schema)
    except Exception as error:  # noqa: BLE001 - a row's boundary
        if len(rows) > 1:
            return pa.concat_tables([_records([row]) for row in rows])
        letter = DeadLetter(rows[0].row_id, Step.PROMPT, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
        return pa.Table.from_pylist([_record(letter)], schema=schema)


def from_block(block: pa.Table) -> Iterator[ShardPrompts]:
    """Unpack the shards of a block one after the other; a shard's memory is released once it is handed out."""
    for index in range(block.num_rows):
        yield _unpack(block, index)


def _unpack(block: pa.Table, index: int) -> ShardPrompts:
    table = pa.ipc.open_stream(block.column("payload")[index].as_buffer()).read_all()
    carried_names = [name for name in table.column_names if name.startswith("carry.")]
    carried = table.select(carried_names).rename_columns([name.removeprefix("carry.") for name in carried_names])
    row_ids: list[Any] = table.column("row_id").to_pylist()
    rows = [_row(record) for record in table.select([field.name for field in _PROMPT_FIELDS]).to_pylist()]
    return ShardPrompts(
        block.column("shard")[index].as_py(),
        [row for row in rows if isinstance(row, Prompt)],
        [row for row in rows if isinstance(row, DeadLetter)],
        carried,
        {row_id: position for position, row_id in enumerate(row_ids)},
    )


def _record(row: Prompt | DeadLetter) -> dict[str, Any]:
    if isinstance(row, DeadLetter):
        return {"row_id": row.row_id, "step": str(row.step), "code": str(row.code), "message": row.message}
    return {
        "row_id": row.row_id,
        "token_ids": row.token_ids.tobytes(),
        "images": _image_records(row.images),
        "total_pages": row.total_pages,
        "page_groups": [
            {
                "first_page": group.first_page,
                "last_page": group.last_page,
                "token_ids": group.token_ids.tobytes(),
                "images": _image_records(group.images),
            }
            for group in row.page_groups
        ],
        "messages": json.dumps(row.messages) if row.messages else None,
        "max_tokens": row.max_tokens,
        "truncated": row.truncated,
    }


def _image_records(images: list[Image]) -> list[dict[str, Any]]:
    return [{"width": image.width, "height": image.height, "packed": image.packed} for image in images]


def _row(record: dict[str, Any]) -> Prompt | DeadLetter:
    if record["code"] is not None:
        return DeadLetter(record["row_id"], Step(record["step"]), ErrorCode(record["code"]), record["message"])
    groups = [
        PageGroup(group["first_page"], group["last_page"], as_ids(group["token_ids"]), _images(group["images"]))
        for group in record["page_groups"]
    ]
    messages = json.loads(record["messages"]) if record["messages"] else []
    images = _images(record["images"])
    return Prompt(
        record["row_id"],
        as_ids(record["token_ids"]),
        images,
        record["total_pages"],
        groups,
        messages,
        record["max_tokens"],
        record["truncated"],
    )


def _images(records: list[dict[str, Any]]) -> list[Image]:
    return [Image(**record) for record in records]
