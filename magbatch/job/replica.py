"""One replica: an engine, and the rows of many shards inside it at once.

Every row that enters a replica ends in a committed object, as an answer or as a dead letter, or is
left for the next attempt, which asks the ledger first. Rows are committed in the order in which
they finish: none waits for a slower neighbour.
"""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from magbatch.answers import Reader, made_columns
from magbatch.engines.base import Engine
from magbatch.errors import EngineDeadError, ErrorCode, RowError, Step, StorageError
from magbatch.job.ask import Ask, Progress
from magbatch.job.board import Board, Load, Order, Use
from magbatch.job.in_flight import InFlight
from magbatch.job.lease import EXPIRY_S, Hold
from magbatch.job.ledger import Ledger
from magbatch.job.prepare import Job, ShardPrompts
from magbatch.metrics import COMMIT_BOUNDS_S
from magbatch.pipeline.generate import ADMITTED_PER_SLOT, Admission, Generate, Steering
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.write import Committed, PartWriter
from magbatch.rows import DeadLetter, FinishedRow, Prompt
from magbatch.tokenizer import Tokenizer
from magbatch.totals import Totals, bucket

# Engines that die with a row in flight before it counts as their killer. After the first death a part of the suspects
# is let in at once, after the second one suspect at a time: a killer is found among 2 x 256 rows by three deaths, and
# a row that is innocent would have to meet three of them.
STRIKES = 3
SLOTS_PER_SUSPECT = 8  # after one death: of 256 rows at once, 32 are suspects
NOTICE_WAIT_S = 1.0  # a platform that ends a node may tell the engine before the replica
SHARDS_AHEAD = 4  # of which the board is told before their turn; one of them is unpacked
COMMITS_AT_ONCE = 32  # up to 256 open shards commit every 5 s, and a store takes up to half a second
UNCOMMITTED_PER_SLOT = 8  # finished rows that may wait for the store before admission waits for it
NOTICE_S = 25.0  # between SIGTERM and the end: platforms give 30 s
TICK_S = 0.25
REPORT_INTERVAL_S = 1.0
HOLD_INTERVAL_S = 5.0

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Attempt:
    """One attempt at a shard: finished rows wait here for their commit."""

    shard: int
    writer: PartWriter
    finished: list[FinishedRow] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    open: deque[Prompt] = field(default_factory=deque)  # rows that are not let in yet
    since: float = 0.0  # when the oldest row that waits was finished
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def waiting(self) -> int:
        return len(self.finished) + len(self.letters)


class Replica:
    """Answers shards with one engine.

    Args:
        name: For the board.
        job: The job.
        engine: A started engine.
        tokenizer: The model's tokenizer.
        prompter: Makes the prompts over what was answered to a document's parts.
        slots: Rows that the engine works on at once (max_num_seqs).
        max_model_len: Tokens that it can hold for one row.
        board: Where the replicas of the job meet.
        die: Ends this process; an engine that is gone does not come back.
        notice: Is set when this process is about to be killed.
        hold: The run's lease.
    """

    def __init__(
        self,
        name: str,
        job: Job,
        engine: Engine,
        tokenizer: Tokenizer,
        prompter: Prompter,
        *,
        slots: int,
        max_model_len: int,
        board: Board,
        die: Callable[[], None],
        notice: threading.Event | None = None,
        hold: Hold | None = None,
    ) -> None:
        self._name = name
        self._spec = job.spec
        self._engine = engine
        limits = job.spec.limits
        steering = Steering.of(job.spec, tokenizer)
        generate = Generate(engine, job.spec.sampling, max_model_len, limits.repetition_tokens, steering)
        self._ask = Ask(generate, Parser(tokenizer), Reader(job.spec.answer), job.spec.sampling.n, prompter)
        self._admission = Admission(ADMITTED_PER_SLOT * slots)
        self._max_uncommitted = max(UNCOMMITTED_PER_SLOT * slots, job.spec.output.commit_rows)
        self._committed = asyncio.Event()
        self._near = asyncio.Semaphore(SHARDS_AHEAD)
        self._unpacking, self._turn = asyncio.Lock(), asyncio.Lock()  # shards enter one after the other
        # Apart from each other: where a store is slow, no shard waits to be unpacked until that has taken others.
        self._unpacker, self._committer = ThreadPoolExecutor(1), ThreadPoolExecutor(COMMITS_AT_ONCE)
        self._suspects = {1: asyncio.Semaphore(max(1, slots // SLOTS_PER_SUSPECT)), 2: asyncio.Semaphore(1)}
        self._board = board
        self._die = die
        self._notice = notice
        self._hold = hold
        self._looking: asyncio.Task[None] | None = None
        self._noticed: float | None = None
        self._recalled = False
        self._refusal: str | None = None
        self._refused: deque[None] = deque()  # one for each refusal, from the threads of commits
        self._ledger = Ledger(job.spec.output.path, job.spec.output.patience_s, self._note_refusal)
        self._in_flight = InFlight(limits.row_timeout_s)
        self._slots, self._samples = slots, job.spec.sampling.n
        self._preemptions = 0  # of the engine, as far as they are reported
        self._held_at = time.monotonic()  # when the lease was last seen to be the run's
        self._attempts: set[_Attempt] = set()
        self._rows: set[asyncio.Task[None]] = set()
        self._commits: set[asyncio.Task[None]] = set()
        self._done, self._use = Totals(), Use()
        self._stopping = False
        self._storage_failure: StorageError | None = None
        self._clock: asyncio.Task[None] | None = None
        self._death: asyncio.Task[None] | None = None

    async def run(self, shard: int, unpack: Callable[[], ShardPrompts], *, untouched: bool) -> int:
        """Answer and commit the rows of a shard.

        Args:
            shard: Its number.
            unpack: Gives its prompts. Called when the shard is the next to enter, not before: of the shards
                that wait, one holds memory here.
            untouched: It had no committed row when the run began.

        Returns:
            Rows of it that are still open: none, unless the replica was asked to stop.

        Raises:
            StorageError: The output does not take the rows.
            EngineDeadError: The engine died, and `die` came back.
        """
        if self._clock is None:
            self._clock = asyncio.create_task(self._tick())
            self._looking = asyncio.create_task(self._look_at_hold())
        mine: set[asyncio.Task[None]] = set()
        attempt: _Attempt | None = None
        try:
            async with AsyncExitStack() as entering:
                async with self._near:  # while others enter: the engine waits neither for the board nor for a shard
                    first, strikes = await self._board.begin(shard)
                    async with self._unpacking:
                        work = await self._in(self._unpacker, unpack)
                        del unpack
                        await entering.enter_async_context(self._turn)
                done = frozenset[str]()
                if not (first and untouched):  # now: a zombie may have committed of it a moment ago
                    done = await asyncio.to_thread(self._ledger.done_rows, shard)
                attempt = self._attempt(work, done)
                del work
                left = await self._admit(attempt, strikes, mine)
            left += await _wait_for(mine)
            await self._commit(attempt)
            return left
        finally:
            for task in mine:
                task.cancel()
            if attempt is not None:
                self._attempts.discard(attempt)
                async with attempt.lock:  # a commit under way ends before the shard does
                    pass
            await self._report()

    def stop(self) -> None:
        """Take no more rows, and abort those in the engine; what is finished is still committed."""
        self._stopping = True
        self._committed.set()
        for task in self._rows:
            task.cancel()

    def _attempt(self, work: ShardPrompts, done: frozenset[str]) -> _Attempt:
        """An attempt at a shard, with the rows that are not done."""
        store, model = self._ledger.store, self._spec.model.source
        made, refuses = made_columns(self._spec), self._spec.answer.schema is not None
        writer = PartWriter(store, work.carried, work.positions, model, work.shard, made, with_answer=refuses)
        attempt = _Attempt(work.shard, writer)
        self._attempts.add(attempt)
        for letter in work.failed:
            if letter.row_id not in done:
                self._finish(attempt, letter)
        # Emptied as rows are admitted: a straggler must not hold the images of its whole shard.
        attempt.open.extend(row for row in work.prompts if row.row_id not in done)
        return attempt

    async def _admit(self, attempt: _Attempt, strikes: dict[str, int], mine: set[asyncio.Task[None]]) -> int:
        """Let rows into the engine as it has room; returns how many a stop has kept out."""
        left = 0
        while attempt.open:
            prompt = attempt.open.popleft()
            struck = strikes.get(prompt.row_id, 0)
            if struck >= STRIKES:
                message = f"it was in flight in {STRIKES} engines when they died or hung"
                self._finish(attempt, DeadLetter(prompt.row_id, Step.GENERATE, ErrorCode.ENGINE_KILLER, message))
                continue
            if struck:
                self._start(self._suspect(attempt, prompt, struck), mine)
                continue
            await self._room_to_commit()
            size, requests = prompt.size_bytes, prompt.requests
            await self._admission.enter(size, requests)
            while self._noticed is not None and not self._stopping:
                await asyncio.sleep(TICK_S)  # nothing that is begun now would be finished
            if self._stopping:
                self._admission.leave(size, requests)
                left += 1
                continue
            task = self._start(self._row(attempt, prompt), mine)
            # Not in the task itself: one that is cancelled before it begins gives its place back too.
            task.add_done_callback(lambda _, place=(size, requests): self._admission.leave(*place))  # type: ignore[misc]
        return left

    def _start(self, row: Coroutine[None, None, None], mine: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(row)
        mine.add(task)
        self._rows.add(task)
        task.add_done_callback(self._rows.discard)
        if self._stopping:
            task.cancel()
        return task

    async def _room_to_commit(self) -> None:
        """Finished rows are kept until the store has them; while too many wait, none is added."""
        while not self._stopping:
            if self._storage_failure is not None:
                raise self._storage_failure
            if sum(attempt.waiting for attempt in self._attempts) < self._max_uncommitted:
                return
            self._committed.clear()
            for attempt in self._attempts:
                self._commit_soon(attempt)
            await self._committed.wait()

    async def _suspect(self, attempt: _Attempt, prompt: Prompt, strikes: int) -> None:
        """A row that was in an engine that died: with few of its like, so that few are struck again."""
        async with self._suspects[strikes]:
            await self._admission.enter(prompt.size_bytes, prompt.requests)
            try:
                await self._row(attempt, prompt)
            finally:
                self._admission.leave(prompt.size_bytes, prompt.requests)

    async def _row(self, attempt: _Attempt, prompt: Prompt) -> None:
        """One admitted row, asked."""
        try:
            self._finish(attempt, await self._answer(attempt.shard, prompt))
        except EngineDeadError:
            await asyncio.shield(self._end_soon())
            raise
        if attempt.waiting >= self._spec.output.commit_rows:
            self._commit_soon(attempt)

    async def _answer(self, shard: int, prompt: Prompt) -> FinishedRow | DeadLetter:
        row = self._in_flight.enter(shard, prompt.row_id)
        progress = Progress(functools.partial(self._in_flight.watch, row))
        try:
            return await self._ask(prompt, progress)
        except EngineDeadError:
            raise
        except asyncio.CancelledError:
            if not row.hangs:
                self._in_flight.leave(prompt.row_id)
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            waited = f"the engine gave it no token for {self._spec.limits.row_timeout_s:,.0f} s (limits.row_timeout_s)"
            return DeadLetter(prompt.row_id, progress.step, ErrorCode.ROW_TIMEOUT, waited)
        except RowError as error:
            return DeadLetter(prompt.row_id, progress.step, error.code, error.message, error.answer)
        except Exception as error:  # noqa: BLE001 - a row's boundary: a defect must not stop its neighbours
            return DeadLetter(prompt.row_id, progress.step, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")

    def _finish(self, attempt: _Attempt, row: FinishedRow | DeadLetter) -> None:
        if not attempt.waiting:
            attempt.since = time.monotonic()
        self._in_flight.leave(row.row_id)
        if isinstance(row, DeadLetter):
            attempt.letters.append(row)
        else:
            attempt.finished.append(row)

    async def _commit(self, attempt: _Attempt) -> None:
        """Commit what is finished; what the store refuses stays, and the error goes up."""
        async with attempt.lock:
            finished, letters = attempt.finished[:], attempt.letters[:]
            try:
                if (finished or letters) and time.monotonic() - self._held_at > EXPIRY_S:
                    await self._check_hold()
                if finished:
                    await self._count(self._in(self._committer, attempt.writer.results, finished))
                    del attempt.finished[: len(finished)]
                if letters:
                    await self._count(self._in(self._committer, attempt.writer.errors, letters))
                    del attempt.letters[: len(letters)]
            except StorageError as error:
                self._storage_failure = error
                raise
            finally:
                attempt.since = time.monotonic()
                self._committed.set()

    @staticmethod
    def _in(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def _count(self, commit: Awaitable[Committed]) -> None:
        """Wait for an object to be written, and count its rows."""
        began = time.monotonic()
        committed = await commit
        took = time.monotonic() - began
        self._done = self._done.plus(committed.totals)
        self._use.commits += 1
        self._use.commit_ms += round(1000 * took)
        self._use.commit_bytes += committed.bytes
        bucket(self._use.by_commit, [took], COMMIT_BOUNDS_S)

    def _commit_soon(self, attempt: _Attempt) -> None:
        """Commit in a task of its own: one that is under way is never cancelled half-way."""
        if attempt.waiting and not attempt.lock.locked():
            task = asyncio.create_task(self._commit_quietly(attempt))
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)

    async def _commit_quietly(self, attempt: _Attempt) -> None:
        # Kept in _storage_failure: admission raises it, and the shard's own last commit tries once more.
        with suppress(StorageError):
            await self._commit(attempt)

    async def _tick(self) -> None:
        """Commits what has waited long enough, and tells the board what was done."""
        reported = ticked = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if self._in_flight.requests * self._samples < self._slots and not self._stopping and self._noticed is None:
                self._use.short_s += now - ticked
            ticked = now
            if self._noticed is None and self._notice is not None and self._notice.is_set():
                self._noticed = now
                await self._board.trouble("a node is about to go: its replica commits what is finished")
            for attempt in self._attempts:
                if self._noticed is not None or now - attempt.since >= self._spec.output.commit_interval_s:
                    self._commit_soon(attempt)
            if self._noticed is not None and not self._stopping:
                late = now - self._noticed > NOTICE_S
                if late and not self._recalled:
                    await self._end()
                if self._recalled and (late or not len(self._in_flight)):
                    self.stop()  # its shards end with the rows that are left, and its actor is let go
            if self._refusal is not None:
                refusal, self._refusal = self._refusal, None
                await self._board.trouble(f"the output's storage refuses, trying again: {refusal}")
            if self._in_flight.look(now):
                self._end_soon()
            if now - reported >= REPORT_INTERVAL_S:
                reported = now
                await self._report()

    async def _look_at_hold(self) -> None:
        """A replica whose run was taken over is a zombie: what it has is answered by others now."""
        # In a task of its own: a store that is away may keep it for a while.
        while self._hold is not None:
            await asyncio.sleep(HOLD_INTERVAL_S)
            with suppress(StorageError):  # the next look tells
                await self._check_hold()

    async def _check_hold(self) -> None:
        """Ends this process where another run has the output; raises StorageError where that cannot be seen."""
        if self._hold is None:
            return
        if await asyncio.to_thread(self._hold.is_lost):
            self._die()
        self._held_at = time.monotonic()

    def _note_refusal(self, error: StorageError) -> None:
        """From the thread of a commit: the next tick tells the board."""
        self._refusal = str(error)
        self._refused.append(None)

    async def _report(self) -> None:
        load = self._engine.load()
        self._use.preemptions += load.preemptions - self._preemptions
        self._preemptions = load.preemptions
        while self._refused:
            self._refused.popleft()
            self._use.commit_retries += 1
        done, self._done, use, self._use = self._done, Totals(), self._use, Use()
        waiting = sum(len(attempt.open) for attempt in self._attempts)
        finished = sum(attempt.waiting for attempt in self._attempts)
        order = await self._board.report(self._name, done, use, Load(len(self._in_flight), waiting, load, finished))
        if order == Order.STOP and not self._stopping:
            self.stop()
        if order == Order.GIVE_BACK and self._noticed is None and not self._stopping:
            self._noticed, self._recalled = time.monotonic(), True  # as for a node that goes
            await self._board.trouble("another job is to have its devices: a replica commits what is finished")

    def _end_soon(self) -> asyncio.Task[None]:
        if self._death is None:
            self._death = asyncio.create_task(self._end_with_engine())
        return self._death

    async def _end_with_engine(self) -> None:
        """The engine is gone, or hangs: name the rows that were in it, commit what is finished, and end."""
        if self._notice is not None and await asyncio.to_thread(self._notice.wait, NOTICE_WAIT_S):
            await self._end()  # the node goes, and has taken the engine first: no row did it
            return
        await self._board.strike(self._in_flight.by_shard())
        await self._end()

    async def _end(self) -> None:
        """Commit what is finished, and end: the next replica asks the ledger what is open."""
        await asyncio.gather(*(self._commit_quietly(attempt) for attempt in list(self._attempts)))
        await self._report()
        await self._board.left(self._name)
        self._die()


async def _wait_for(rows: set[asyncio.Task[None]]) -> int:
    """Wait for all; the first error goes up at once. Returns how many a stop has cancelled."""
    left = 0
    while rows:
        ended, _ = await asyncio.wait(rows, return_when=asyncio.FIRST_EXCEPTION)
        rows -= ended
        for task in ended:
            if task.cancelled():
                left += 1
            else:
                task.result()
    return left
