"""Shards -> blocks for the replicas: read, render and prompt, composed for one read task.

A block is one shard, or a piece of one whose rows take much memory: one record whose payload holds the prompts of
its rows. So Ray can neither split a block nor join two, and a block that is handled again is the same block. A row
that failed on its way here rides along with its error: the replica commits it like any other.
"""

import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from magbatch.documents.images import ImageGrid
from magbatch.errors import ErrorCode, JobError, RowError, Step, StorageError, short_message
from magbatch.ledger.ledger import Ledger
from magbatch.model.checkpoint import engine_args, facts, locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.read import ShardReader, ShardRows, read_together
from magbatch.pipeline.reading import Deaths, Notes, ReadLog, one_by_one
from magbatch.pipeline.render import Renderer, max_tokens
from magbatch.plan.columns import carried_fields, rendered_columns
from magbatch.rows import DeadLetter, Image, InputRow, PageGroup, Prompt, Shard, as_ids
from magbatch.spec import JobSpec, carried_columns
from magbatch.storage.columns import empty_table
from magbatch.storage.patience import patiently

RECORDS_BYTES = 16 << 20  # of a shard, that are made into records at once
RENDER_THREADS = 4  # decoding and fetching release the GIL
BLOCK_SCHEMA = pa.schema([("shard", pa.int64()), ("rows", pa.int64()), ("payload", pa.large_binary())])
_IMAGE = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("packed", pa.large_binary())])
_PART = pa.struct(
    [
        ("first_page", pa.int32()),
        ("last_page", pa.int32()),
        ("token_ids", pa.binary()),
        ("images", pa.list_(_IMAGE)),
    ]
)
_PROMPT_FIELDS = [
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("token_ids", pa.binary()),  # as they lie in memory
    pa.field("images", pa.list_(_IMAGE)),
    pa.field("total_pages", pa.int32()),
    pa.field("parts", pa.list_(_PART)),
    pa.field("messages", pa.string()),  # JSON
    pa.field("max_tokens", pa.int64()),
    pa.field("truncated", pa.bool_()),
    pa.field("step", pa.string()),
    pa.field("code", pa.string()),
    pa.field("message", pa.string()),
]


@dataclass(frozen=True, slots=True)
class JobContext:
    """What every task and replica of a job is given.

    Attributes:
        spec: The job.
        columns: The input columns that it reads, with the plan's types.
        distinct: As in the plan.
        plan_id: Id of the plan; None for plans without one.
    """

    spec: JobSpec
    columns: pa.Schema
    distinct: bool = False
    plan_id: str | None = None

    @property
    def carry(self) -> pa.Schema:
        """The carried columns, by their names in the output."""
        return carried_fields(self.spec, self.columns)


@dataclass(slots=True)
class ShardPrompts:
    """A block as a replica sees it.

    Attributes:
        shard: The shard's number.
        prompts: Rows for the engine.
        failed: Rows that failed on their way.
        carried: Carried columns, one row for each prompt and failure.
        positions: Row id to its row in `carried`.
    """

    shard: int
    prompts: list[Prompt]
    failed: list[DeadLetter]
    carried: pa.Table
    positions: dict[str, int]


def lost(shard: int, carry: pa.Schema, letter: DeadLetter) -> ShardPrompts:
    """A row that is not read: it carries nothing."""
    nothing = pa.table([pa.nulls(1, field.type) for field in carry], schema=carry)
    return ShardPrompts(shard, [], [letter], nothing, {letter.row_id: 0})


def joined(shard: int, carry: pa.Schema, pieces: list[ShardPrompts]) -> ShardPrompts:
    """Rows of a shard that were prepared apart."""
    ids = [row_id for piece in pieces for row_id in piece.positions]
    return ShardPrompts(
        shard,
        [prompt for piece in pieces for prompt in piece.prompts],
        [letter for piece in pieces for letter in piece.failed],
        pa.concat_tables([empty_table(carry), *(piece.carried for piece in pieces)]),
        {row_id: position for position, row_id in enumerate(ids)},
    )


@functools.lru_cache(maxsize=1)
def _steps(spec: str) -> tuple[Tokenizer, Renderer, Prompter]:
    """Once for each process, not for each task: a full vocabulary takes seconds to load."""
    job = JobSpec.model_validate_json(spec)
    checkpoint = locate(job.model, weights=False)
    model = facts(checkpoint)
    grid = ImageGrid(model.image_size, model.image_cell) if model.image_size else None
    tokenizer = Tokenizer(checkpoint)
    max_model_len = int(engine_args(job, model)["max_model_len"])
    return tokenizer, Renderer(job, grid), Prompter(job, checkpoint, tokenizer, max_model_len)


class Preparer:
    """Turns shards into blocks.

    Args:
        job: The job.

    Raises:
        ModelError: The tokenizer or the configuration cannot be had.
    """

    def __init__(self, job: JobContext) -> None:
        spec = job.spec
        self.tokenizer, self._render, self._prompt = _steps(spec.model_dump_json())
        self._spec = spec
        self._carry, self._carried = job.carry, carried_columns(spec.input)
        self._max_tokens = spec.input.columns.max_tokens
        self._used = list(dict.fromkeys([*rendered_columns(spec), *filter(None, [self._max_tokens])]))
        self._columns = job.columns
        self._reader = ShardReader(job.columns)

    def pieces(self, shards: list[Shard]) -> tuple[list[list[Shard]], bool]:
        """See `ShardReader.pieces`."""
        return self._reader.pieces(shards)

    def read_ahead(self, shards: list[Shard]) -> None:
        """See `ShardReader.read_ahead`."""
        self._reader.read_ahead(shards)

    def one_by_one(self, shard: Shard, done: frozenset[str], deaths: Deaths, notes: Notes) -> ShardPrompts:
        """Prepare the rows of a shard at which readers died: each is noted before it is touched.

        Raises:
            StorageError: The input's storage does not answer.
        """
        self._reader = ShardReader(self._columns, batch_rows=1)  # decoding a neighbour would accuse the wrong row
        pieces: list[ShardPrompts] = []
        for row_id, alone in one_by_one(shard, done):
            letter = deaths.letter(row_id)
            if letter is not None:
                pieces.append(lost(shard.index, self._carry, letter))
                continue
            notes.row(shard.index, row_id)
            pieces.append(self(alone))
            notes.row(shard.index, None)
        self._reader = ShardReader(self._columns)
        return joined(shard.index, self._carry, pieces)

    def __call__(self, shard: Shard, done: frozenset[str] = frozenset()) -> ShardPrompts:
        """Prepare the rows of a shard that are not done.

        Raises:
            StorageError: The input's storage does not answer.
        """
        try:
            return self._prepared(shard.index, self._reader(shard, done))
        except JobError:
            raise
        except Exception:  # noqa: BLE001 - a row's boundary: each row is looked at by itself then
            rows = list(one_by_one(shard, done))
            return joined(shard.index, self._carry, [self._alone(row_id, alone) for row_id, alone in rows])

    def _alone(self, row_id: str, alone: Shard) -> ShardPrompts:
        """One row of a shard that cannot be prepared as a whole."""
        try:
            return self._prepared(alone.index, self._reader(alone))
        except JobError:
            raise
        except Exception as error:  # noqa: BLE001 - a row's boundary: whatever one row does to a library
            message = short_message(f"reading the row fails: {type(error).__name__}: {error}")
            return lost(alone.index, self._carry, DeadLetter(row_id, Step.READ, ErrorCode.ROW_UNREADABLE, message))

    def _prepared(self, shard: int, read: ShardRows) -> ShardPrompts:
        """Rows as read, rendered."""

        def outcome(at: int) -> Prompt | DeadLetter:  # one row's values are in memory at a time, not those of all
            return self._row(self._input_row(read.row_ids[at], read.table.slice(at, 1), read.folders[at]))

        columns, each = self._spec.input.columns, range(len(read.row_ids))
        if columns.images or columns.messages or columns.document:
            with ThreadPoolExecutor(RENDER_THREADS) as pool:
                outcomes = list(pool.map(outcome, each))
        else:
            outcomes = [outcome(at) for at in each]
        failed = [DeadLetter(row_id, Step.READ, error.code, error.message) for row_id, error in read.failed]
        carried = read.table.select(self._carried).rename_columns(self._carry.names)
        if failed:  # an unreadable row carries nothing
            nothing = pa.table([pa.nulls(len(failed), field.type) for field in self._carry], schema=self._carry)
            carried = pa.concat_tables([carried, nothing]) if self._carry.names else carried
        ids = [*read.row_ids, *(letter.row_id for letter in failed)]
        return ShardPrompts(
            shard,
            [outcome for outcome in outcomes if isinstance(outcome, Prompt)],
            [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)] + failed,
            carried,
            {row_id: position for position, row_id in enumerate(ids)},
        )

    def _input_row(self, row_id: str, record: pa.Table, folder: str) -> InputRow | DeadLetter:
        """The values that rendering uses; what is only carried is never turned into Python."""
        values: dict[str, Any] = {}
        for name in self._used:
            try:
                value = record.column(name)[0].as_py()
            except Exception as error:  # noqa: BLE001 - a row's boundary: a date past year 9999, an unknown time zone
                message = f"column {name!r} holds a value that cannot be read: {error}"
                return DeadLetter(row_id, Step.READ, ErrorCode.ROW_UNREADABLE, message)
            if value is not None:
                values[name] = value
        return InputRow(row_id, values, folder)

    def _row(self, row: InputRow | DeadLetter) -> Prompt | DeadLetter:
        if isinstance(row, DeadLetter):
            return row
        step = Step.RENDER
        try:
            most = max_tokens(row.values, self._max_tokens) if self._max_tokens else None
            rendered = self._render(row)
            step = Step.PROMPT
            prompt = self._prompt(rendered)
            prompt.max_tokens = most
            return prompt
        except RowError as error:
            return DeadLetter(row.row_id, step, error.code, error.message)
        except JobError:  # no property of the row; where storage is away, the whole shard is tried again
            raise
        except BaseException as error:
            # A row's boundary: a defect must not stop its neighbours. What panics in Rust is no `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return DeadLetter(row.row_id, step, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")


def prepare(
    job: JobContext,
    shards: list[Shard],
    partly_done: frozenset[int],
    on_wait: Callable[[StorageError], None] | None = None,
    notes: Notes | None = None,
) -> Iterator[pa.Table]:
    """The blocks of a read task, one after the other.

    Args:
        job: The job.
        shards: In the order of the plan, so that files are read forward.
        partly_done: Shards of which the ledger already holds some rows.
        on_wait: Is called with each refusal of the storage that is waited out.
        notes: Where it is noted what is being read, for the reader that comes after one that died.
    """
    notes = notes or ReadLog()
    preparer = Preparer(job)
    patience_s = job.spec.output.patience_s
    ledger = Ledger(job.spec.output.path, patience_s, on_wait, plan_id=job.plan_id)

    def works() -> Iterator[tuple[ShardPrompts, bool]]:
        """The pieces of each shard, and whether each is its last; they are the same ones whoever reads it."""
        done_rows = ledger.look_up(partly_done)  # what is committed later, the replica sees
        for together in read_together(shards):
            known = [notes.begin(shard.index) for shard in together]
            first = known[0]
            struck = any(deaths.touch(shard) for deaths, shard in zip(known, together, strict=True))
            unsized = any(
                deaths.sizes_kill or deaths.give_up(shard) for deaths, shard in zip(known, together, strict=True)
            )
            cut, small = [[shard] for shard in together], True
            if not unsized:
                cut, small = patiently(functools.partial(preparer.pieces, together), patience_s, on_wait)
            ahead = together if small and not struck else []
            patiently(functools.partial(preparer.read_ahead, ahead), patience_s, on_wait)
            for shard in together[1:]:  # not touched until its turn comes
                notes.end(shard.index)
            for number, pieces in enumerate(cut):
                shard = together[number]
                deaths = notes.begin(shard.index) if number else first
                done = done_rows(shard.index) if shard.index in partly_done else frozenset[str]()
                for piece in pieces:
                    act = functools.partial(preparer, piece, done)
                    if deaths.touch(shard):
                        act = functools.partial(preparer.one_by_one, piece, done, deaths, notes)
                    yield patiently(act, patience_s, on_wait), piece is pieces[-1]

    document = job.spec.input.document
    if job.spec.input.columns.document and document.overflow == "map_reduce":  # two such shards are gigabytes
        for one, last in works():
            block = to_block(one)
            if last:
                notes.end(one.shard)
            del one
            yield block
        return
    coming = works()
    ahead = ThreadPoolExecutor(1)  # a shard is rendered while the one before it is packed and taken
    try:
        ready = ahead.submit(next, coming, None)
        while (found := ready.result()) is not None:
            ready = ahead.submit(next, coming, None)
            block, shard, last = to_block(found[0]), found[0].shard, found[1]
            del found
            if last:
                notes.end(shard)
            yield block
            del block
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)


def to_block(work: ShardPrompts) -> pa.Table:
    """A shard as one record."""
    rows: list[Prompt | DeadLetter] = [*work.prompts, *work.failed]
    order = sorted(rows, key=lambda row: work.positions[row.row_id])
    carried = work.carried.rename_columns([f"carry.{name}" for name in work.carried.column_names])
    schema = pa.schema([*_PROMPT_FIELDS, *carried.schema])
    sink = pa.BufferOutputStream()
    held = sum(prompt.size_bytes for prompt in work.prompts)
    at_once = max(1, len(order) * RECORDS_BYTES // max(held, RECORDS_BYTES))  # no second copy of all images
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
    """One record for each row; a row that cannot be one is a dead letter, and its neighbours are what they were."""
    schema = pa.schema(_PROMPT_FIELDS)
    try:
        return pa.Table.from_pylist([_record(row) for row in rows], schema=schema)
    except Exception as error:  # noqa: BLE001 - a row's boundary
        if len(rows) > 1:
            return pa.concat_tables([_records([row]) for row in rows])
        letter = DeadLetter(rows[0].row_id, Step.PROMPT, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
        return pa.Table.from_pylist([_record(letter)], schema=schema)


def from_block(block: pa.Table) -> Iterator[ShardPrompts]:
    """The shards of a block, as the replica takes them; nothing of one is kept once it is handed out."""
    for index in range(block.num_rows):
        yield _unpack(block, index)


def _unpack(block: pa.Table, index: int) -> ShardPrompts:
    table = pa.ipc.open_stream(block.column("payload")[index].as_buffer()).read_all()
    carried_names = [name for name in table.column_names if name.startswith("carry.")]
    carried = table.select(carried_names).rename_columns([name.removeprefix("carry.") for name in carried_names])
    row_ids = table.column("row_id").to_pylist()
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
        "parts": [
            {
                "first_page": part.first_page,
                "last_page": part.last_page,
                "token_ids": part.token_ids.tobytes(),
                "images": _image_records(part.images),
            }
            for part in row.parts
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
    parts = [
        PageGroup(part["first_page"], part["last_page"], as_ids(part["token_ids"]), _images(part["images"]))
        for part in record["parts"]
    ]
    messages = json.loads(record["messages"]) if record["messages"] else []
    images = _images(record["images"])
    return Prompt(
        record["row_id"],
        as_ids(record["token_ids"]),
        images,
        record["total_pages"],
        parts,
        messages,
        record["max_tokens"],
        record["truncated"],
    )


def _images(records: list[dict[str, Any]]) -> list[Image]:
    return [Image(**record) for record in records]
