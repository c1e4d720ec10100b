"""Shards -> blocks for the replicas: read, render and prompt, composed for one read task.

A block is one shard, or a piece of a shard whose rows take much memory. It is a single record, whose payload holds the
prompts of all its rows. So Ray can neither split nor join blocks, and a block that is made again is the same block.

A row that failed on the way travels with its error: the replica commits it like any other row.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from magbatch.documents.images import ImageGrid
from magbatch.engines import engine_args
from magbatch.errors import ErrorCode, JobError, RowError, Step, StorageError, short_message
from magbatch.model.checkpoint import Checkpoint, locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.block import ShardPrompts, joined, to_block, unread
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.read import ShardReader, ShardRows, read_together
from magbatch.pipeline.reading import Deaths, Notes, ReadLog, one_by_one
from magbatch.pipeline.render import Renderer, max_tokens
from magbatch.rows import DeadLetter, InputRow, Prompt, Shard
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns, rendered_columns
from magbatch.storage.patience import patiently

T = TypeVar("T")
RENDER_THREADS = 4  # decoding and fetching release the GIL; more threads hold more decoded images at once


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps between rows and prompts. A process makes them once: a full vocabulary takes seconds to load.

    Attributes:
        spec: Spec of the job.
        checkpoint: Files of the model on this node.
        tokenizer: Mistral's tokenizer of the model.
        render: Row -> chat.
        prompt: Chat -> token ids.
    """

    spec: JobSpec
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    render: Renderer
    prompt: Prompter

    @classmethod
    def of(cls, spec: JobSpec, checkpoint: Checkpoint) -> "Steps":
        """Make the steps of a job.

        Args:
            spec: Spec of the job.
            checkpoint: The model's files, with or without weights.

        Raises:
            ModelError: The tokenizer or the configuration cannot be had.
        """
        model = checkpoint.facts
        grid = ImageGrid(model.image_size, model.image_cell) if model.image_size else None
        tokenizer = Tokenizer(checkpoint.path)
        prompter = Prompter(spec, checkpoint.path, tokenizer, engine_args(spec, model).max_model_len)
        return cls(spec, checkpoint, tokenizer, Renderer(spec, grid), prompter)


class StepsOfProcess:
    """The steps of the job that a process prepares, found and made at its first read task."""

    def __init__(self) -> None:
        self._steps: Steps | None = None

    def of(self, spec: JobSpec) -> Steps:
        """The steps of a job, made if the last ones belong to another spec.

        Raises:
            ModelError: The model's files are missing or have another version.
        """
        if self._steps is None or self._steps.spec != spec:
            self._steps = Steps.of(spec, locate(spec.model, weights=False))
        return self._steps


class Preparer:
    """Turns shards into prompts.

    Args:
        job: Spec and planned columns of the job.
        steps: Steps of the job.

    Attributes:
        tokenizer: Mistral's tokenizer of the model.
    """

    def __init__(self, job: JobContext, steps: Steps) -> None:
        spec = self._spec = job.spec
        self.tokenizer, self._render, self._prompt = steps.tokenizer, steps.render, steps.prompt
        self._carry, self._carried = job.carry, carried_columns(spec.input)
        self._max_tokens = spec.input.columns.max_tokens
        self._used = list(dict.fromkeys([*rendered_columns(spec), *filter(None, [self._max_tokens])]))
        self._columns = job.columns
        self._reader = ShardReader(job.columns)

    def pieces(self, shards: list[Shard]) -> tuple[list[list[Shard]], bool]:
        """Cut shards into pieces that fit memory; see `ShardReader.pieces`."""
        return self._reader.pieces(shards)

    def read_ahead(self, shards: list[Shard]) -> None:
        """Read the rows of mixed shards in one pass; see `ShardReader.read_ahead`."""
        self._reader.read_ahead(shards)

    def one_by_one(self, shard: Shard, done: frozenset[str], deaths: Deaths, notes: Notes) -> ShardPrompts:
        """Prepare a shard at which readers died: each row is noted before it is touched.

        Args:
            shard: Shard as it was planned.
            done: Ids of its committed rows, which are left out.
            deaths: Deaths of earlier readers that concern the shard.
            notes: Log of the rows that are being read.

        Raises:
            StorageError: The input's storage does not answer.
        """
        self._reader = ShardReader(self._columns, batch_rows=1)  # decoding a neighbour would accuse the wrong row
        pieces: list[ShardPrompts] = []
        for row_id, alone in one_by_one(shard, done):
            letter = deaths.letter(row_id)
            if letter is not None:
                pieces.append(unread(shard.index, self._carry, letter))
                continue
            notes.row(shard.index, row_id)
            pieces.append(self(alone))
            notes.row(shard.index, None)
        self._reader = ShardReader(self._columns)
        return joined(shard.index, self._carry, pieces)

    def __call__(self, shard: Shard, done: frozenset[str] = frozenset()) -> ShardPrompts:
        """Prepare a shard.

        Args:
            shard: Shard as it was planned.
            done: Ids of its committed rows, which are left out.

        Raises:
            StorageError: The input's storage does not answer.
        """
        try:
            return self._prepared(shard.index, self._reader(shard, done))
        except JobError:
            raise
        except Exception:  # noqa: BLE001 - a row's boundary: each row is tried alone to find the one that fails
            rows = list(one_by_one(shard, done))
            return joined(shard.index, self._carry, [self._alone(row_id, alone) for row_id, alone in rows])

    def _alone(self, row_id: str, alone: Shard) -> ShardPrompts:
        """Prepare a single row of a shard that cannot be prepared as a whole."""
        try:
            return self._prepared(alone.index, self._reader(alone))
        except JobError:
            raise
        except Exception as error:  # noqa: BLE001 - a row's boundary: a library may raise anything
            message = short_message(f"reading the row fails: {type(error).__name__}: {error}")
            return unread(alone.index, self._carry, DeadLetter(row_id, Step.READ, ErrorCode.ROW_UNREADABLE, message))

    def _prepared(self, shard: int, read: ShardRows) -> ShardPrompts:
        """Render rows that were read, and build their prompts."""

        def outcome(at: int) -> Prompt | DeadLetter:
            # A slice of one row: only its values are Python objects at this moment.
            return self._row(self._input_row(read.row_ids[at], read.table.slice(at, 1), read.folders[at]))

        columns, each = self._spec.input.columns, range(len(read.row_ids))
        if columns.images or columns.messages or columns.document:
            with ThreadPoolExecutor(RENDER_THREADS) as pool:
                outcomes = list(pool.map(outcome, each))
        else:
            outcomes = [outcome(at) for at in each]
        failed = [DeadLetter(row_id, Step.READ, error.code, error.message) for row_id, error in read.failed]
        carried = read.table.select(self._carried).rename_columns(self._carry.names)
        if failed:  # an unreadable row carries nulls
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
        """The values that rendering uses. Columns that are only carried stay in Arrow."""
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
        """Render a row and build its prompt; a row that fails becomes a dead letter."""
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
        except JobError:  # not the row's fault, e.g. storage is away: the whole shard is tried again
            raise
        except BaseException as error:
            # A row's boundary: a defect must not stop its neighbours. A panic in Rust does not derive from `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return DeadLetter(row.row_id, step, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")


def prepare(
    job: JobContext,
    steps: Steps,
    shards: list[Shard],
    may_have_rows: frozenset[int],
    done_rows: Callable[[], Callable[[int], frozenset[str]]],
    on_wait: Callable[[StorageError], None] | None = None,
    notes: Notes | None = None,
) -> Iterator[pa.Table]:
    """Prepare the shards of a read task.

    Args:
        job: Spec and planned columns of the job.
        steps: Steps of the job.
        shards: The shards, in the order of the plan, so that files are read forward.
        may_have_rows: Indices of the shards that may have committed rows.
        done_rows: Look-up of the shards in `may_have_rows`, called once before the first shard. Its result gives the
            ids of a shard's committed rows. The replica checks again for rows that are committed later.
        on_wait: Callback for each refusal of the storage that is waited out.
        notes: Log of the rows that are being read, for the next reader if this one dies.

    Yields:
        Blocks, one for each shard or piece of a shard.

    Raises:
        StorageError: The storage does not answer, and patience (`output.patience_s`) is over.
    """
    notes = notes or ReadLog()
    task = _ReadTask(Preparer(job, steps), job.spec.output.patience_s, may_have_rows, on_wait, notes)
    pieces = task.pieces(shards, done_rows)

    def pack(piece: _Piece) -> pa.Table:
        block = to_block(piece.prompts)
        if piece.is_last:
            notes.end(piece.prompts.shard)
        return block

    document = job.spec.input.document
    if job.spec.input.columns.document and document.overflow == "map_reduce":  # two such shards take gigabytes
        yield from map(pack, pieces)
    else:
        yield from _look_ahead(pieces, pack)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A prepared piece of a shard.

    Attributes:
        prompts: Rows of the piece, each as a prompt or a dead letter.
        is_last: Whether no other piece of the shard follows.
    """

    prompts: ShardPrompts
    is_last: bool


class _ReadTask:
    """Preparation of the shards of one read task, with patience and with notes of the rows that are read.

    Args:
        preparer: Preparer of the job's shards.
        patience_s: Seconds that the storage may refuse.
        may_have_rows: Indices of the shards that may have committed rows.
        on_wait: Callback for each refusal of the storage that is waited out.
        notes: Log of the rows that are being read.
    """

    def __init__(
        self,
        preparer: Preparer,
        patience_s: float,
        may_have_rows: frozenset[int],
        on_wait: Callable[[StorageError], None] | None,
        notes: Notes,
    ) -> None:
        self._preparer = preparer
        self._may_have_rows, self._notes = may_have_rows, notes
        self._patience_s, self._on_wait = patience_s, on_wait

    def pieces(self, shards: list[Shard], done_rows: Callable[[], Callable[[int], frozenset[str]]]) -> Iterator[_Piece]:
        """The pieces of all shards in order. Every reader of a shard cuts it into the same pieces."""
        committed = done_rows()
        for together in read_together(shards):
            deaths = [self._notes.begin(shard.index) for shard in together]
            cut = self._cut(together, deaths)
            for shard in together[1:]:  # noted again when its turn comes: until then no death is its fault
                self._notes.end(shard.index)
            for number, (shard, pieces) in enumerate(zip(together, cut, strict=True)):
                known = self._notes.begin(shard.index) if number else deaths[0]
                done = committed(shard.index) if shard.index in self._may_have_rows else frozenset[str]()
                for piece in pieces:
                    act = functools.partial(self._preparer, piece, done)
                    if known.reads_rows_alone(shard):
                        act = functools.partial(self._preparer.one_by_one, piece, done, known, self._notes)
                    yield _Piece(self._patiently(act), piece is pieces[-1])

    def _cut(self, together: list[Shard], deaths: list[Deaths]) -> list[list[Shard]]:
        """The pieces of shards that are read together; if all of them are small, they are read ahead in one pass."""
        pairs = list(zip(deaths, together, strict=True))
        cut, are_small = [[shard] for shard in together], True
        if not any(known.sizes_kill or known.is_given_up(shard) for known, shard in pairs):
            cut, are_small = self._patiently(functools.partial(self._preparer.pieces, together))
        reads_ahead = are_small and not any(known.reads_rows_alone(shard) for known, shard in pairs)
        self._patiently(functools.partial(self._preparer.read_ahead, together if reads_ahead else []))
        return cut

    def _patiently(self, act: Callable[[], T]) -> T:
        return patiently(act, self._patience_s, self._on_wait)


def _look_ahead(pieces: Iterator[_Piece], pack: Callable[[_Piece], pa.Table]) -> Iterator[pa.Table]:
    """The packed pieces; a thread prepares the next piece while a block is packed and taken.

    If the consumer stops early, nothing waits for the piece that is being prepared.
    """
    thread = ThreadPoolExecutor(1)
    try:
        ready = thread.submit(next, pieces, None)
        while (piece := ready.result()) is not None:
            ready = thread.submit(next, pieces, None)
            block = pack(piece)
            del piece  # a piece is as large as its block: only the block stays in memory
            yield block
            del block
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
