"""Shards -> blocks for the replicas: read, render and prompt, composed for one read task.

A block is one shard, or a piece of one whose rows take much memory: one record whose payload holds the prompts of
its rows. So Ray can neither split a block nor join two, and a block that is handled again is the same block. A row
that failed on its way here rides along with its error: the replica commits it like any other.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from magbatch.documents.images import ImageGrid
from magbatch.engines.defaults import engine_args
from magbatch.errors import ErrorCode, JobError, RowError, Step, StorageError, short_message
from magbatch.model.checkpoint import locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.block import ShardPrompts, joined, lost, to_block
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.read import ShardReader, ShardRows, read_together
from magbatch.pipeline.reading import Deaths, Notes, ReadLog, one_by_one
from magbatch.pipeline.render import Renderer, max_tokens
from magbatch.rows import DeadLetter, InputRow, Prompt, Shard
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns, rendered_columns
from magbatch.storage.patience import patiently

RENDER_THREADS = 4  # decoding and fetching release the GIL


@functools.lru_cache(maxsize=1)
def _steps(spec: str) -> tuple[Tokenizer, Renderer, Prompter]:
    """Once for each process, not for each task: a full vocabulary takes seconds to load."""
    job = JobSpec.model_validate_json(spec)
    checkpoint = locate(job.model, weights=False)
    model = checkpoint.facts
    grid = ImageGrid(model.image_size, model.image_cell) if model.image_size else None
    tokenizer = Tokenizer(checkpoint.path)
    max_model_len = int(engine_args(job, model)["max_model_len"])
    return tokenizer, Renderer(job, grid), Prompter(job, checkpoint.path, tokenizer, max_model_len)


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
    may_have_rows: frozenset[int],
    done_rows: Callable[[], Callable[[int], frozenset[str]]],
    on_wait: Callable[[StorageError], None] | None = None,
    notes: Notes | None = None,
) -> Iterator[pa.Table]:
    """The blocks of a read task, one after the other.

    Args:
        job: The job.
        shards: In the order of the plan, so that files are read forward.
        may_have_rows: Shards of which some rows may be committed already.
        done_rows: Looks these shards up, and returns the ids of the committed rows of each.
        on_wait: Is called with each refusal of the storage that is waited out.
        notes: Where it is noted what is being read, for the reader that comes after one that died.
    """
    notes = notes or ReadLog()
    preparer = Preparer(job)
    patience_s = job.spec.output.patience_s

    def works() -> Iterator[tuple[ShardPrompts, bool]]:
        """The pieces of each shard, and whether each is its last; they are the same ones whoever reads it."""
        committed = done_rows()  # what is committed later, the replica sees
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
                done = committed(shard.index) if shard.index in may_have_rows else frozenset[str]()
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
