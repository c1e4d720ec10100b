"""The actor of one replica: it starts the engine in time, runs the replica, and ends the process if either breaks.

Ray starts an ended actor again with the same arguments. Its rows are safe: all that counts is in the ledger.
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
from magbatch.engines.base import Engine, EngineConfig
from magbatch.errors import DefectError, JobError, LeaseError, StorageError
from magbatch.fleet.nodes import this_node
from magbatch.ledger.holder import LeaseToken
from magbatch.model.checkpoint import Checkpoint, locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.block import from_block
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prompt import Prompter
from magbatch.replica import preemption as preempt
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.losses import Home, own_log
from magbatch.replica.replica import Replica
from magbatch.replica.timing import REPORT_INTERVAL_S
from magbatch.replica.watchdog import deathless
from magbatch.spec import needs_weights
from magbatch.totals import Totals
from magbatch.versions import versions

REFUSED_S = 20.0  # a replica keeps a node with other versions for so long, so that the next replica gets another node
LEAVE_S = 5.0  # for the board to note that a replica ends
BOARD_WAIT_S = 5.0  # at most, between two tries to reach the board


class RayBoard:
    """The board, from inside a replica.

    A call that finds the board unreachable is repeated. The board may then hear it twice, and counts it once. Only a
    dead board ends the replica.

    Args:
        handle: Ray's handle of the board.
        die: Ends this process.
        wait_s: Longest wait between two tries (seconds).
    """

    def __init__(self, handle: Any, die: Callable[[], None], wait_s: float = BOARD_WAIT_S) -> None:
        self._handle, self._die, self._wait_s = handle, die, wait_s
        self._reports = itertools.count(1)

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """See `Board.begin`."""
        answer: tuple[bool, dict[str, int]] = await self._ask("begin", shard)
        return answer

    async def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """See `Board.announce`."""
        await self._ask("announce", replica, rows)

    async def strike(self, replica: str, rows: dict[int, list[str]], why: str) -> None:
        """See `Board.strike`."""
        await self._ask("strike", replica, rows, why)

    async def report(self, replica: str, done: Totals, use: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        """See `Board.report`."""
        return Order(await self._ask("report", replica, done, use, load, rows, next(self._reports)))

    async def trouble(self, message: str) -> None:
        """See `Board.trouble`."""
        await self._ask("trouble", message)

    async def left(self, replica: str, why: str = "") -> None:
        """See `Board.left`."""
        await self._ask("left", replica, why)

    async def broke(self, replica: str, cause: str) -> None:
        """See `Board.broke`."""
        await self._ask("broke", replica, cause)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        tries = AsyncRetrying(
            retry=retry_if_exception_type(ray.exceptions.ActorUnavailableError),
            wait=wait_random_exponential(multiplier=0.2, max=self._wait_s),
        )
        try:
            return await tries(self._once, method, *arguments)
        except ray.exceptions.RayActorError:
            self._die()  # the board runs on the driver's node: a replica without a board is a zombie
            raise

    async def _once(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._handle, method).remote(*arguments)


class Worker:
    """The actor of one replica.

    Args:
        job: The job.
        board: Ray's handle of the board.
        may_have_rows: Indices of shards of which the ledger may hold rows already.
        token: The run's lease.
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
        # No reference to the worker: Ray Data drops the reference to a worker that it releases, and then this runs.
        weakref.finalize(self, _release, name, board, self._begun, engine).atexit = False
        self._may_have_rows = may_have_rows
        self._replica = Replica(
            name, job, engine, tokenizer, Prompter(spec, checkpoint.path, tokenizer, int(args["max_model_len"])),
            slots=int(args["max_num_seqs"]), max_model_len=int(args["max_model_len"]),
            board=RayBoard(board, _die), die=_die, notice=preempt.notice, token=token,
        )  # fmt: skip

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Answer and commit the shards of a block.

        Args:
            block: Table (shards,) of prepared shards, as `to_block` makes it.

        Returns:
            Table (shards,) with one column. Nobody reads it: Ray Data counts its rows as progress.
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
    """Raise LeaseError in a replica that Ray starts again although another run has the output now."""
    with suppress(StorageError):  # the replica looks again while it works
        if token.is_lost():
            raise LeaseError(f"another run has taken {token.root} over")


def _refuse(name: str, refusal: str, board: Any) -> NoReturn:
    """End a replica on a node with other versions."""
    time.sleep(REFUSED_S)
    ray.get(board.refuse_replica.remote(name, refusal))
    _die()


def _start_engine(job: JobContext, checkpoint: Checkpoint) -> tuple[Engine, Tokenizer, dict[str, Any]]:
    """Start the engine of a job.

    Returns:
        The engine, its tokenizer, and the resolved engine arguments.

    Raises:
        EngineStartError: The engine did not start.
    """
    spec = job.spec
    with uncollected():
        args = engine_args(spec, checkpoint.facts, job.engine_hints)
        tokenizer = Tokenizer(checkpoint.path)
        config = EngineConfig(checkpoint.path, args, spec.sampling, spec.replicas.gpus, spec.metrics.enabled)
        engine = start(spec.model.engine, config, tokenizer)
        tokenizer.decode(tokenizer.encode_text("warm-up"))  # builds the table of pieces now, not while rows wait
    return engine, tokenizer, args


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep objects that are made within this block for the life of the process, out of the garbage collector's sight.

    The collector would walk them again and again: for 1.4 s during the import of vLLM (780,000 objects), then for 0.4 s
    at a time. The engine would get no row and give no token in that time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _report_idle(name: str, board: Any, begun: threading.Event) -> None:
    """Report free slots every second until the first rows come; from then on the replica reports itself."""
    began = time.monotonic()
    while not begun.wait(REPORT_INTERVAL_S):
        now = time.monotonic()
        board.report.remote(name, Totals(), Usage(short_s=now - began), Load())
        began = now


def _release(name: str, board: Any, begun: threading.Event, engine: Engine) -> None:
    """Give the devices back: Ray Data has released the replica, since other replicas have the rows that are left."""
    begun.set()
    with suppress(ray.exceptions.RayError):  # the board may be gone already
        ray.get(board.left.remote(name), timeout=LEAVE_S)
    engine.shutdown()


@contextmanager
def _start_budget(name: str, seconds: float, board: Any) -> Iterator[None]:
    """End the process if this block takes longer than some seconds."""
    budget = threading.Timer(seconds, _give_up_start, (name, seconds, board))
    budget.daemon = True
    budget.start()
    try:
        yield
    finally:
        budget.cancel()


def _give_up_start(name: str, seconds: float, board: Any) -> None:
    """End a replica whose engine does not start; what it has printed last may tell the cause."""
    said = last_words()
    message = f"the engine did not start within {seconds:,.0f} s (replicas.start_timeout_s)"
    message = f"{message}; its last words:\n{said}" if said else message
    try:
        ray.get(board.engine_failed.remote(name, message), timeout=LEAVE_S)
    finally:
        _die()  # also if the board is gone, or does not answer


def _die() -> NoReturn:
    """End this process and its engine at once: an actor without a working engine would fail all that Ray gives it."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)
