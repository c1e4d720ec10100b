"""The actor of one replica. It starts the engine in time, runs the replica, and ends the process if either breaks.

Ray restarts an ended actor with the same arguments. Rows are safe, because the ledger alone decides which are done.
"""

import functools
import gc
import itertools
import os
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import psutil
import pyarrow as pa
import ray
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from magbatch.capture import last_words
from magbatch.engines import engine_args, start
from magbatch.engines.base import Engine, EngineArgs, EngineConfig
from magbatch.errors import DefectError, JobError, LeaseError, StorageError
from magbatch.fleet.nodes import this_node
from magbatch.ledger.holder import LeaseToken
from magbatch.model.checkpoint import Checkpoint, locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.answer import RowAnswerer
from magbatch.pipeline.block import from_block
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prompt import Prompter
from magbatch.replica import preemption as preempt
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.losses import Home, LossReason, own_log
from magbatch.replica.replica import Replica
from magbatch.replica.surroundings import Surroundings
from magbatch.replica.timing import REPORT_INTERVAL_S
from magbatch.replica.watchdog import deathless
from magbatch.spec import needs_weights
from magbatch.totals import Totals
from magbatch.versions import versions

REFUSED_S = 20.0  # time on a node with other versions, so that the next replica gets another node
LEAVE_S = 5.0  # time for the board to note that a replica ends
BOARD_WAIT_S = 5.0  # longest wait between two tries to reach the board


class RayBoard:
    """The board, as a replica uses it.

    A call that cannot reach the board is repeated. The board may then get it twice, but counts it once. Only a
    dead board ends the replica.

    Args:
        handle: Ray's handle of the board.
        die: Callback that ends this process.
        wait_s: Longest wait between two tries (seconds).
    """

    def __init__(self, handle: Any, die: Callable[[], None], wait_s: float = BOARD_WAIT_S) -> None:
        self._handle, self._die, self._wait_s = handle, die, wait_s
        self._reports = itertools.count(1)

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """Register an attempt at a shard; see `Board.begin`."""
        answer: tuple[bool, dict[str, int]] = await self._ask("begin", shard)
        return answer

    async def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """Announce rows; see `Board.announce`."""
        await self._ask("announce", replica, rows)

    async def strike(self, replica: str, rows: dict[int, list[str]], reason: LossReason, detail: str) -> None:
        """Strike rows; see `Board.strike`."""
        await self._ask("strike", replica, rows, reason, detail)

    async def report(self, replica: str, done: Totals, use: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        """Report rows, usage and load; see `Board.report`."""
        return Order(await self._ask("report", replica, done, use, load, rows, next(self._reports)))

    async def trouble(self, message: str) -> None:
        """Report a message for a person; see `Board.trouble`."""
        await self._ask("trouble", message)

    async def left(self, replica: str, reason: LossReason | None = None) -> None:
        """Report that the replica ends; see `Board.left`."""
        await self._ask("left", replica, reason)

    async def broke(self, replica: str, cause: str) -> None:
        """Report a defect; see `Board.broke`."""
        await self._ask("broke", replica, cause)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        tries = AsyncRetrying(
            retry=retry_if_exception_type(ray.exceptions.ActorUnavailableError),
            wait=wait_random_exponential(multiplier=0.2, max=self._wait_s),
        )
        try:
            return await tries(self._once, method, *arguments)
        except ray.exceptions.RayActorError:
            self._die()  # the board runs on the driver's node, so the driver is gone too
            raise

    async def _once(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._handle, method).remote(*arguments)


class Worker:
    """The actor of one replica.

    Args:
        job: Spec and planned columns of the job.
        board: Ray's handle of the board.
        may_have_rows: Indices of shards that may have committed rows.
        token: Token of the run's lease, checked before commits.
    """

    def __init__(self, job: JobContext, board: Any, may_have_rows: frozenset[int], token: LeaseToken) -> None:
        preempt.listen(_die)
        spec = job.spec
        name = uuid.uuid4().hex[:8]
        _check_lease(token)
        if (refusal := ray.get(board.differs.remote(this_node(), versions()))) is not None:
            _refuse(name, refusal, board)
        home = Home(this_node(), own_log())
        ray.get(board.join.remote(name, ray.get_runtime_context().get_actor_id(), home))
        try:
            with _start_budget(name, spec.replicas.start_timeout_s, board):
                checkpoint = locate(spec.model, weights=needs_weights(spec.model))
                engine, tokenizer, args = _start_engine(job, checkpoint)
        except JobError as error:
            ray.get(board.engine_failed.remote(name, str(error)))
            raise
        ray.get(board.report.remote(name, Totals(), Usage(), Load()))
        self._board = board
        self._begun = threading.Event()
        deathless("waiting", functools.partial(_report_idle, name, board, self._begun), _die)
        # The arguments hold no reference to the worker: this runs when Ray Data drops the last one, to release it.
        weakref.finalize(self, _release, name, board, self._begun, engine).atexit = False
        self._may_have_rows = may_have_rows
        prompter = Prompter(spec, checkpoint.path, tokenizer, args.max_model_len)
        answerer = RowAnswerer.of(spec, engine, tokenizer, prompter, args.max_model_len)
        around = Surroundings(name, RayBoard(board, _die), _die, preempt.notice, token)
        self._replica = Replica(job, engine, answerer, args.max_num_seqs, around)

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Answer and commit the shards of a block.

        Args:
            block: Table (shards,) of prepared shards, as `to_block` makes it.

        Returns:
            Table (shards,) with one number a shard, the least that Ray Data hands on: it drops blocks without rows or
            bytes, and `Consumer` ends the execution at a block. The values are unused.
        """
        self._begun.set()
        shards: list[Any] = block.column("shard").to_pylist()
        for index, shard in enumerate(shards):
            unpack = functools.partial(next, from_block(block.slice(index, 1)))
            try:
                await self._replica.run(shard, unpack, may_have_rows=shard in self._may_have_rows)
            except JobError as error:
                await self._board.failed.remote(error)
                raise
            except Exception as error:
                traceback.print_exc()
                await self._board.failed.remote(DefectError(f"shard {shard}: {type(error).__name__}: {error}"))
                raise
        return block.select(["shard"])


def _check_lease(token: LeaseToken) -> None:
    """Raise LeaseError if another run has the output now. Ray may restart a replica that is no longer wanted."""
    with suppress(StorageError):  # the replica looks again while it works
        if token.is_lost():
            raise LeaseError(f"another run has taken {token.root} over")


def _refuse(name: str, refusal: str, board: Any) -> NoReturn:
    """End a replica on a node with other versions."""
    time.sleep(REFUSED_S)
    ray.get(board.refuse_replica.remote(name, refusal))
    _die()


def _start_engine(job: JobContext, checkpoint: Checkpoint) -> tuple[Engine, Tokenizer, EngineArgs]:
    """Start the engine of a job.

    Returns:
        The engine, its tokenizer, and the resolved engine arguments.

    Raises:
        EngineStartError: The engine did not start; the message has its own error.
    """
    spec = job.spec
    with uncollected():
        args = engine_args(spec, checkpoint.facts, job.engine_hints)
        tokenizer = Tokenizer(checkpoint.path)
        config = EngineConfig(checkpoint.path, args.to_dict(), spec.sampling, spec.replicas.gpus, spec.metrics.enabled)
        engine = start(spec.model.engine, config, tokenizer)
        tokenizer.decode(tokenizer.encode_text("warm-up"))  # builds the tokenizer's tables before rows wait for them
    return engine, tokenizer, args


@contextmanager
def uncollected() -> Iterator[None]:
    """Hide the objects that are made within this block from the garbage collector, for the life of the process.

    The collector would visit them repeatedly: for 1.4 s during the import of vLLM (780,000 objects), then for 0.4 s
    at a time. In that time the engine would get no rows and give no tokens.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _report_idle(name: str, board: Any, begun: threading.Event) -> None:
    """Report free slots every second until the first rows come; after that, the replica itself reports."""
    began = time.monotonic()
    while not begun.wait(REPORT_INTERVAL_S):
        now = time.monotonic()
        board.report.remote(name, Totals(), Usage(short_s=now - began), Load())
        began = now


def _release(name: str, board: Any, begun: threading.Event, engine: Engine) -> None:
    """Give the devices back. Ray Data has released the replica because other replicas have the rows that are left."""
    begun.set()
    with suppress(ray.exceptions.RayError):  # the board may be gone already
        ray.get(board.left.remote(name), timeout=LEAVE_S)
    engine.shutdown()


@contextmanager
def _start_budget(name: str, seconds: float, board: Any) -> Iterator[None]:
    """End the process if this block takes longer than `seconds`."""
    budget = threading.Timer(seconds, _give_up_start, (name, seconds, board))
    budget.daemon = True
    budget.start()
    try:
        yield
    finally:
        budget.cancel()


def _give_up_start(name: str, seconds: float, board: Any) -> None:
    """End a replica whose engine does not start; its last printed lines may tell the cause."""
    said = last_words()
    message = f"the engine did not start within {seconds:,.0f} s (replicas.start_timeout_s)"
    message = f"{message}; the last lines of its log:\n{said}" if said else message
    try:
        ray.get(board.engine_failed.remote(name, message), timeout=LEAVE_S)
    finally:
        _die()  # even if the board is gone or does not reply


def _die() -> NoReturn:
    """End this process and its engine at once: an actor without a working engine would fail every task of Ray."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)
