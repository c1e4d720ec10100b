"""A replica: one engine, and the rows of many shards inside it at once.

Every row that enters a replica ends in a committed object, as an answer or a dead letter, or is left for the next
attempt, which asks the ledger first. Rows are committed in the order in which they finish: no row waits for a slower
neighbour.
"""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import islice

from magbatch.answers import made_columns
from magbatch.engines.base import Engine
from magbatch.errors import EngineDeadError
from magbatch.ledger.ledger import Ledger
from magbatch.pipeline.answer import RowAnswerer
from magbatch.pipeline.block import ShardPrompts
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.write import ObjectWriter
from magbatch.replica.admission import ADMITTED_PER_SLOT, Admission
from magbatch.replica.announced import ROWS_AHEAD, Announced
from magbatch.replica.answering import Answering
from magbatch.replica.clock import Clock
from magbatch.replica.commits import Attempt, Commits
from magbatch.replica.departure import Departure
from magbatch.replica.ending import Ending
from magbatch.replica.entrance import Entrance
from magbatch.replica.losses import LossReason
from magbatch.replica.reports import Refusals, Reports
from magbatch.replica.surroundings import Surroundings
from magbatch.replica.suspects import Suspects
from magbatch.replica.watchdog import Background, LeaseWatch
from magbatch.rows import DeadLetter, FinishedRow, Prompt

Tasks = set[asyncio.Task[None]]


class Replica:
    """Worker that answers shards with one engine.

    Args:
        job: Spec and planned columns of the job.
        engine: Engine that has started.
        answerer: Steps that answer a row with this engine.
        slots: Rows that the engine works on at once (`max_num_seqs`).
        around: Run and process around the replica.
    """

    def __init__(
        self, job: JobContext, engine: Engine, answerer: RowAnswerer, slots: int, around: Surroundings
    ) -> None:
        spec, output, timing = job.spec, job.spec.output, around.timing
        refusals, background = Refusals(), Background()
        lease = LeaseWatch(around.token, output.patience_s, refusals.add, around.die, timing)
        self._job, self._tasks = job, Tasks()
        self._ledger = Ledger(output.path, output.patience_s, refusals.add, plan_id=job.plan_id)
        self._entrance = Entrance(around.board, self._ledger, output.patience_s)
        self._admission, self._suspects = Admission(ADMITTED_PER_SLOT * slots), Suspects(slots)
        self._announced = Announced(around.name, around.board)
        self._answering = Answering(answerer, spec.limits.row_timeout_s)
        self._commits = Commits(output, slots, lease, background)
        self._departure = Departure(around.board, around.notice, self._abort, timing)
        in_flight = self._answering.in_flight
        reports = Reports(
            around.name, around.board, engine,
            commits=self._commits, in_flight=in_flight, announced=self._announced,
            refusals=refusals, departure=self._departure,
        )  # fmt: skip
        self._ending = Ending(
            around.name, around.board,
            commits=self._commits, in_flight=in_flight, reports=reports, departure=self._departure,
            background=background, die=around.die, timing=timing,
        )  # fmt: skip
        background.on_error = self._ending.with_defect
        self._clock = Clock(
            spec, slots,
            commits=self._commits, in_flight=in_flight, reports=reports, departure=self._departure,
            ending=self._ending, background=background, timing=timing,
        )  # fmt: skip

    async def run(self, shard: int, unpack: Callable[[], ShardPrompts], *, may_have_rows: bool) -> int:
        """Answer and commit the rows of a shard.

        Args:
            shard: Index of the shard.
            unpack: Function that unpacks the shard's prompts, called when the shard is the next to enter.
            may_have_rows: Whether rows of the shard may have been committed before the run began.

        Returns:
            Number of rows that are still open: 0, unless the replica was asked to stop.

        Raises:
            StorageError: The output does not take the rows.
            EngineDeadError: The engine died, and `die` returned.
        """
        self._clock.start()
        mine = Tasks()
        attempt: Attempt | None = None
        try:
            entry = self._entrance.enter(shard, unpack, self._begin, may_have_rows=may_have_rows)
            del unpack
            async with entry as (attempt, strikes):
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
            await self._clock.report()

    def stop(self) -> None:
        """Take no more rows, and abort those in the engine; finished rows are still committed."""
        self._departure.stop()

    def _abort(self) -> None:
        self._commits.wake()
        for task in self._tasks:
            task.cancel()

    def _begin(self, work: ShardPrompts, done: frozenset[str]) -> Attempt:
        """Start an attempt at a shard, with the rows that are not done."""
        spec = self._job.spec
        writer = ObjectWriter(
            self._ledger.store, work.carried, work.positions, spec.model.source, work.shard, made_columns(spec),
            with_answer=spec.answer.may_refuse, plan_id=self._job.plan_id,
        )  # fmt: skip
        attempt = Attempt(work.shard, writer, frozenset(work.positions))
        self._commits.attempts.add(attempt)
        for letter in work.failed:
            if letter.row_id not in done:
                self._finish(attempt, letter)
        # Emptied as rows are admitted: a straggler must not hold the images of its whole shard.
        attempt.open.extend(row for row in work.prompts if row.row_id not in done)
        return attempt

    async def _admit(self, attempt: Attempt, strikes: dict[str, int], mine: Tasks) -> int:
        """Let rows into the engine when it has room; returns the number of rows that a stop has kept out."""
        left = announced = 0
        while attempt.open:
            if not announced and not self._departure.is_stopped:
                announced = min(ROWS_AHEAD, len(attempt.open))
                ahead = [row.row_id for row in islice(attempt.open, announced)]
                await self._announced.send(attempt.shard, (row_id for row_id in ahead if row_id not in strikes))
            prompt = attempt.open.popleft()
            announced -= 1
            struck = strikes.get(prompt.row_id, 0)
            if (letter := self._suspects.letter(prompt.row_id, struck)) is not None:
                self._finish(attempt, letter)
            elif struck:
                self._start(self._suspect(attempt, prompt, struck), mine)
            else:
                await self._commits.wait_for_room(lambda: self._departure.is_stopped)
                left += not await self._let_in(attempt, prompt, mine)
        return left

    async def _let_in(self, attempt: Attempt, prompt: Prompt, mine: Tasks) -> bool:
        """Let a row into the engine when there is room; False if a stop has kept it out."""
        size = prompt.size_bytes, prompt.requests
        await self._admission.enter(*size)
        task: asyncio.Task[None] | None = None
        try:
            await self._departure.wait()  # a row that starts now could not be finished
            if not self._departure.is_stopped:
                task = self._start(self._row(attempt, prompt), mine)
        finally:
            if task is None:
                self._admission.leave(*size)
        if task is None:
            return False
        # A callback, not code in the task: a task that is cancelled before it starts must give its room back too.
        task.add_done_callback(lambda _: self._admission.leave(*size))
        return True

    def _start(self, row: Coroutine[None, None, None], mine: Tasks) -> asyncio.Task[None]:
        task = asyncio.create_task(row)
        mine.add(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._departure.is_stopped:
            task.cancel()
        return task

    async def _suspect(self, attempt: Attempt, prompt: Prompt, strikes: int) -> None:
        """Answer a row that was in an engine that died. Few suspects enter at once, so that few are struck again."""
        async with self._suspects.bound(strikes):
            await self._admission.enter(prompt.size_bytes, prompt.requests)
            try:
                await self._announced.send(attempt.shard, [prompt.row_id])
                await self._row(attempt, prompt)
            finally:
                self._admission.leave(prompt.size_bytes, prompt.requests)

    async def _row(self, attempt: Attempt, prompt: Prompt) -> None:
        """Answer an admitted row."""
        try:
            self._finish(attempt, await self._answering(attempt.shard, prompt))
        except EngineDeadError as error:
            await asyncio.shield(self._ending.with_engine(LossReason.ENGINE_DIED, str(error)))
            raise
        if attempt.waiting >= self._job.spec.output.commit_rows:
            self._commits.commit_soon(attempt)

    def _finish(self, attempt: Attempt, row: FinishedRow | DeadLetter) -> None:
        self._answering.in_flight.leave(row.row_id)
        self._announced.leave(attempt.shard, row.row_id)
        attempt.add(row)


async def _wait_for(rows: Tasks) -> int:
    """Wait for all rows; the first error is raised at once. Returns the number of rows that a stop has cancelled."""
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
