"""One replica: an engine, and the rows of many shards inside it at once.

Every row that enters a replica ends in a committed object, as an answer or as a dead letter, or is
left for the next attempt, which asks the ledger first. Rows are committed in the order in which
they finish: none waits for a slower neighbour.
"""

import asyncio
import functools
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice

from magbatch.answers import Checker, made_columns
from magbatch.engines.base import Engine
from magbatch.errors import ClusterError, EngineDeadError, ErrorCode, RowError, Step, StorageError
from magbatch.ledger.holder import EXPIRY_S, LeaseToken
from magbatch.ledger.ledger import Ledger
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.answer import RowAnswerer
from magbatch.pipeline.block import ShardPrompts
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.generate import Generate, ThinkingPlan
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.write import ObjectWriter
from magbatch.replica.admission import ADMITTED_PER_SLOT, Admission
from magbatch.replica.announced import ROWS_AHEAD, Announced
from magbatch.replica.board import Board, Load, Order
from magbatch.replica.commits import Attempt, Commits
from magbatch.replica.in_flight import InFlight
from magbatch.replica.watchdog import HOLD_INTERVAL_S, Background, Holding
from magbatch.rows import DeadLetter, FinishedRow, Prompt

# Engines that die with a row in flight before it counts as their killer. After the first death a part of the suspects
# is let in at once, after the second one suspect at a time: a killer is found among 2 x 256 rows by three deaths, and
# a row that is innocent would have to meet three of them.
STRIKES = 3
NODE_GOES = "its node is about to go; what it had finished is committed"
SLOTS_PER_SUSPECT = 8  # after one death: of 256 rows at once, 32 are suspects
NOTICE_WAIT_S = 1.0  # a platform that ends a node may tell the engine before the replica
SHARDS_AHEAD = 4  # of which the board is told before their turn; one of them is unpacked
TICK_S = 0.25
REPORT_INTERVAL_S = 1.0
ZOMBIES_S = 2 * EXPIRY_S  # a replica of a run that was taken over begins commits for EXPIRY_S at most


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of a replica, in seconds.

    Attributes:
        notice_s: Between SIGTERM and the end: platforms give 30 s.
        hold_interval_s: Between two looks at the lease.
        hold_expiry_s: After a look at the lease until a commit needs another.
    """

    notice_s: float = 25.0
    hold_interval_s: float = HOLD_INTERVAL_S
    hold_expiry_s: float = EXPIRY_S


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
        timing: Its durations.
    """

    def __init__(
        self,
        name: str,
        job: JobContext,
        engine: Engine,
        tokenizer: Tokenizer,
        prompter: Prompter,
        *,
        slots: int,
        max_model_len: int,
        board: Board,
        die: Callable[[], None],
        notice: threading.Event | None = None,
        hold: LeaseToken | None = None,
        timing: Timing = Timing(),
    ) -> None:
        self._name = name
        self._spec = job.spec
        self._engine = engine
        limits = job.spec.limits
        steering = ThinkingPlan.of(job.spec, tokenizer)
        generate = Generate(engine, job.spec.sampling, max_model_len, limits.repetition_tokens, steering)
        self._ask = RowAnswerer(
            generate,
            Parser(tokenizer),
            Checker(job.spec.answer, limits.answer_timeout_s),
            job.spec.sampling.n,
            prompter,
        )
        self._admission = Admission(ADMITTED_PER_SLOT * slots)
        self._near = asyncio.Semaphore(SHARDS_AHEAD)
        self._unpacking, self._turn = asyncio.Lock(), asyncio.Lock()  # shards enter one after the other
        self._unpacker = ThreadPoolExecutor(1)  # of its own: no shard waits until a slow store has taken others
        self._suspects = {1: asyncio.Semaphore(max(1, slots // SLOTS_PER_SUSPECT)), 2: asyncio.Semaphore(1)}
        self._board = board
        self._die = die
        self._notice = notice
        self._timing = timing
        self._background = Background(self._break)
        self._holding = Holding(
            hold, job.spec.output.patience_s, self._note_refusal, die,
            interval_s=timing.hold_interval_s, expiry_s=timing.hold_expiry_s,
        )  # fmt: skip
        self._commits = Commits(job.spec.output, slots, self._holding, self._background)
        self._announced = Announced(name, board)
        self._noticed: float | None = None
        self._recalled = False
        self._refusal: str | None = None
        self._refused: deque[None] = deque()  # one for each refusal, from the threads of commits
        self._plan_id, output = job.plan_id, job.spec.output
        self._ledger = Ledger(output.path, output.patience_s, self._note_refusal, plan_id=job.plan_id)
        # A commit that a zombie has begun may be refused for as long as its patience lasts.
        self._zombies_until = time.monotonic() + ZOMBIES_S + job.spec.output.patience_s
        self._in_flight = InFlight(limits.row_timeout_s)
        self._slots, self._samples = slots, job.spec.sampling.n
        self._preemptions = 0  # of the engine, as far as they are reported
        self._short_s = 0.0  # in which the engine had free slots, since the last report
        self._rows: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._begun = False
        self._death: asyncio.Task[None] | None = None
        self._broken: asyncio.Task[None] | None = None

    async def run(self, shard: int, unpack: Callable[[], ShardPrompts], *, may_have_rows: bool) -> int:
        """Answer and commit the rows of a shard.

        Args:
            shard: Its number.
            unpack: Gives its prompts. Called when the shard is the next to enter, not before: of the shards
                that wait, one holds memory here.
            may_have_rows: Whether rows of it may have been committed before the run began.

        Returns:
            Rows of it that are still open: none, unless the replica was asked to stop.

        Raises:
            StorageError: The output does not take the rows.
            EngineDeadError: The engine died, and `die` came back.
        """
        if not self._begun:
            self._begun = True
            self._background.start(self._tick())
            self._background.start(self._holding.watch())
        mine: set[asyncio.Task[None]] = set()
        attempt: Attempt | None = None
        try:
            async with AsyncExitStack() as entering:
                async with self._near:  # while others enter: the engine waits neither for the board nor for a shard
                    first, strikes = await self._board.begin(shard)
                    async with self._unpacking:
                        work = await asyncio.get_running_loop().run_in_executor(self._unpacker, unpack)
                        del unpack
                        await entering.enter_async_context(self._turn)
                done = frozenset[str]()
                if may_have_rows or not first:  # now: a zombie may have committed of it a moment ago
                    quiet_since = self._zombies_until if first else math.inf
                    done = await asyncio.to_thread(self._ledger.done_rows, shard, quiet_since)
                attempt = self._attempt(work, done)
                del work
                left = await self._admit(attempt, strikes, mine)
            left += await _wait_for(mine)
            await self._commits.commit(attempt)
            return left
        finally:
            for task in mine:
                task.cancel()
            if attempt is not None:
                self._commits.attempts.discard(attempt)
                self._announced.end(shard, attempt.row_ids)
                async with attempt.lock:  # a commit under way ends before the shard does
                    pass
            await self._report()

    def stop(self) -> None:
        """Take no more rows, and abort those in the engine; what is finished is still committed."""
        self._stopping = True
        self._commits.wake()
        for task in self._rows:
            task.cancel()

    def _attempt(self, work: ShardPrompts, done: frozenset[str]) -> Attempt:
        """An attempt at a shard, with the rows that are not done."""
        store, model = self._ledger.store, self._spec.model.source
        made, refuses = made_columns(self._spec), self._spec.answer.may_refuse
        writer = ObjectWriter(
            store, work.carried, work.positions, model, work.shard, made, with_answer=refuses, plan_id=self._plan_id
        )
        attempt = Attempt(work.shard, writer, frozenset(work.positions))
        self._commits.attempts.add(attempt)
        for letter in work.failed:
            if letter.row_id not in done:
                self._finish(attempt, letter)
        # Emptied as rows are admitted: a straggler must not hold the images of its whole shard.
        attempt.open.extend(row for row in work.prompts if row.row_id not in done)
        return attempt

    async def _admit(self, attempt: Attempt, strikes: dict[str, int], mine: set[asyncio.Task[None]]) -> int:
        """Let rows into the engine as it has room; returns how many a stop has kept out."""
        left = told = 0
        while attempt.open:
            if not told and not self._stopping:
                told = min(ROWS_AHEAD, len(attempt.open))
                ahead = [row.row_id for row in islice(attempt.open, told)]
                await self._announced.tell(attempt.shard, (row_id for row_id in ahead if row_id not in strikes))
            prompt = attempt.open.popleft()
            told -= 1
            struck = strikes.get(prompt.row_id, 0)
            if struck >= STRIKES:
                message = f"it was in flight in {STRIKES} engines when they died or hung"
                self._finish(attempt, DeadLetter(prompt.row_id, Step.GENERATE, ErrorCode.ENGINE_KILLER, message))
            elif struck:
                self._start(self._suspect(attempt, prompt, struck), mine)
            else:
                await self._commits.room(lambda: self._stopping)
                left += not await self._let_in(attempt, prompt, mine)
        return left

    async def _let_in(self, attempt: Attempt, prompt: Prompt, mine: set[asyncio.Task[None]]) -> bool:
        """Let one row into the engine when there is room; False if a stop has kept it out."""
        place = prompt.size_bytes, prompt.requests
        await self._admission.enter(*place)
        task: asyncio.Task[None] | None = None
        try:
            while self._noticed is not None and not self._stopping:
                await asyncio.sleep(TICK_S)  # nothing that is begun now would be finished
            if not self._stopping:
                task = self._start(self._row(attempt, prompt), mine)
        finally:
            if task is None:
                self._admission.leave(*place)
        if task is None:
            return False
        # Not in the task itself: a task that is cancelled before it begins gives its place back too.
        task.add_done_callback(lambda _: self._admission.leave(*place))
        return True

    def _start(self, row: Coroutine[None, None, None], mine: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(row)
        mine.add(task)
        self._rows.add(task)
        task.add_done_callback(self._rows.discard)
        if self._stopping:
            task.cancel()
        return task

    async def _suspect(self, attempt: Attempt, prompt: Prompt, strikes: int) -> None:
        """A row that was in an engine that died: with few of its like, so that few are struck again."""
        async with self._suspects[strikes]:
            await self._admission.enter(prompt.size_bytes, prompt.requests)
            try:
                await self._announced.tell(attempt.shard, [prompt.row_id])
                await self._row(attempt, prompt)
            finally:
                self._admission.leave(prompt.size_bytes, prompt.requests)

    async def _row(self, attempt: Attempt, prompt: Prompt) -> None:
        """One admitted row, asked."""
        try:
            self._finish(attempt, await self._answer(attempt.shard, prompt))
        except EngineDeadError as error:
            await asyncio.shield(self._end_soon(f"its engine died: {error}"))
            raise
        if attempt.waiting >= self._spec.output.commit_rows:
            self._commits.soon(attempt)

    async def _answer(self, shard: int, prompt: Prompt) -> FinishedRow | DeadLetter:
        row = self._in_flight.enter(shard, prompt.row_id)
        progress = self._ask.progress(functools.partial(self._in_flight.watch, row))
        try:
            return await self._ask(prompt, progress)
        except (EngineDeadError, ClusterError):
            raise
        except asyncio.CancelledError:
            if not row.hangs:
                self._in_flight.leave(prompt.row_id)
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            waited = f"the engine gave it no token for {self._spec.limits.row_timeout_s:,.0f} s (limits.row_timeout_s)"
            return progress.letter(prompt.row_id, ErrorCode.ROW_TIMEOUT, waited)
        except RowError as error:
            return progress.letter(prompt.row_id, error.code, error.message, error.answer)
        except BaseException as error:
            # A row's boundary: a defect must not stop its neighbours. What panics in Rust is no `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return progress.letter(prompt.row_id, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")

    def _finish(self, attempt: Attempt, row: FinishedRow | DeadLetter) -> None:
        self._in_flight.leave(row.row_id)
        self._announced.leave(attempt.shard, row.row_id)
        attempt.add(row)

    async def _tick(self) -> None:
        """Commits what has waited long enough, and tells the board what was done."""
        reported = ticked = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if self._in_flight.requests * self._samples < self._slots and not self._stopping and self._noticed is None:
                self._short_s += now - ticked
            ticked = now
            if self._noticed is None and self._notice is not None and self._notice.is_set():
                self._noticed = now
                await self._board.trouble("a node is about to go: its replica commits what is finished")
            for attempt in self._commits.attempts:
                if self._noticed is not None or now - attempt.since >= self._spec.output.commit_interval_s:
                    self._commits.soon(attempt)
            if self._noticed is not None and not self._stopping:
                late = now - self._noticed > self._timing.notice_s
                if late and not self._recalled:
                    await self._end(NODE_GOES)
                if self._recalled and (late or not len(self._in_flight)):
                    self.stop()  # its shards end with the rows that are left, and its actor is let go
            if self._refusal is not None:
                refusal, self._refusal = self._refusal, None
                await self._board.trouble(f"the output's storage refuses, trying again: {refusal}")
            if self._in_flight.look(now):
                patience = f"{self._spec.limits.row_timeout_s:,.0f} s (limits.row_timeout_s)"
                self._end_soon(f"its engine hung: no row got a token for {patience}")
            if now - reported >= REPORT_INTERVAL_S:
                reported = now
                await self._report()

    def _note_refusal(self, error: StorageError) -> None:
        """From the thread of a commit: the next tick tells the board."""
        self._refusal = str(error)
        self._refused.append(None)

    async def _report(self) -> None:
        load = self._engine.load()
        done, use = self._commits.taken()
        use.preemptions += load.preemptions - self._preemptions
        self._preemptions = load.preemptions
        use.short_s, self._short_s = self._short_s, 0.0
        while self._refused:
            self._refused.popleft()
            use.commit_retries += 1
        waiting = sum(len(attempt.open) for attempt in self._commits.attempts)
        finished = self._commits.waiting
        state = Load(len(self._in_flight), waiting, load, finished)
        order = await self._board.report(self._name, done, use, state, self._announced.by_shard())
        if order == Order.STOP and not self._stopping:
            self.stop()
        if order == Order.GIVE_BACK and self._noticed is None and not self._stopping:
            self._noticed, self._recalled = time.monotonic(), True  # as for a node that goes
            await self._board.trouble("another job is to have its devices: a replica commits what is finished")

    def _end_soon(self, why: str) -> asyncio.Task[None]:
        if self._death is None:
            self._death = self._background.start(self._end_with_engine(why))
        return self._death

    async def _end_with_engine(self, why: str) -> None:
        """The engine is gone, or hangs: name the rows that were in it, commit what is finished, and end."""
        if self._notice is not None and await asyncio.to_thread(self._notice.wait, NOTICE_WAIT_S):
            await self._end(NODE_GOES)  # and has taken the engine first: no row did it
            return
        await self._board.strike(self._name, self._in_flight.by_shard(), why)
        await self._end()

    async def _end(self, why: str = "") -> None:
        """Commit what is finished, and end: the next replica asks the ledger what is open."""
        await self._commits.all()
        await self._report()
        await self._board.left(self._name, why)
        self._die()

    def _break(self, error: Exception) -> None:
        """A part of the replica has ended that must not: without it, rows would hang or never be committed."""
        self._broken = asyncio.create_task(self._end_broken(f"{type(error).__name__}: {error}"))

    async def _end_broken(self, cause: str) -> None:
        try:
            await asyncio.wait_for(self._commits.all(), self._timing.notice_s)
        except Exception:  # noqa: BLE001 - what broke may be the commits: rows that they leave are asked again
            traceback.print_exc()
        try:
            await self._board.broke(self._name, cause)
        finally:
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
