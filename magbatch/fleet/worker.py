"""The actor of one replica: an engine started within its time, the replica around it, and its end.

Ray starts a worker that has ended anew, with all that it had before it but its engine; what was committed is in the
ledger, and nothing else of it counts.
"""

import functools
import gc
import itertools
import os
import socket
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pyarrow as pa
import ray
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from magbatch.capture import last_words
from magbatch.engines import start
from magbatch.engines.base import Engine, EngineConfig
from magbatch.engines.defaults import engine_args
from magbatch.errors import DefectError, JobError, LeaseError, StorageError
from magbatch.ledger.holder import LeaseToken
from magbatch.model.checkpoint import locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.block import from_block
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prompt import Prompter
from magbatch.replica import preemption as preempt
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.losses import Home, own_log
from magbatch.replica.replica import REPORT_INTERVAL_S, Replica
from magbatch.replica.watchdog import deathless
from magbatch.totals import Totals
from magbatch.versions import versions

REFUSED_S = 20.0  # for which a replica keeps a node with other versions, so that the next one gets another
LEAVE_S = 5.0  # for the board to note that a replica goes
BOARD_WAIT_S = 5.0  # at most, between two tries to reach it


class RayBoard:
    """The board, from inside a replica.

    A board that cannot be reached for a moment is asked again: calls may be heard twice, which the board notices
    where it matters. Only a board that is dead ends the replica.

    Args:
        handle: Ray's handle of the board.
        die: Ends this process.
        wait_s: At most, between two tries (seconds).
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
            self._die()  # the board stands beside the driver: a replica without one is a zombie, and commits no more
            raise

    async def _once(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._handle, method).remote(*arguments)


class Worker:
    """The actor of one replica.

    Args:
        job: The job.
        board: Where the replicas of the run meet.
        may_have_rows: Shards of which the ledger may hold rows already.
        hold: The run's lease.
    """

    def __init__(self, job: JobContext, board: Any, may_have_rows: frozenset[int], hold: LeaseToken) -> None:
        preempt.listen(_die)
        spec = job.spec
        name = uuid.uuid4().hex[:8]
        with suppress(StorageError):  # the replica looks again while it works
            if hold.is_lost():  # Ray starts a zombie's replicas anew, driver or no driver
                raise LeaseError(f"another run has taken {hold.root} over")
        if (why := ray.get(board.differs.remote(this_node(), versions()))) is not None:
            time.sleep(REFUSED_S)
            ray.get(board.refuse_replica.remote(name, why))
            _die()
        home = Home(this_node(), own_log())
        ray.get(board.join.remote(name, ray.get_runtime_context().get_actor_id(), home))
        budget = threading.Timer(
            spec.replicas.start_timeout_s, _give_up_start, (name, spec.replicas.start_timeout_s, board)
        )
        budget.daemon = True
        budget.start()
        try:
            checkpoint = locate(spec.model, weights=spec.model.engine != "fake")
            with uncollected():
                args = engine_args(spec, checkpoint.facts, job.engine_hints)
                tokenizer = Tokenizer(checkpoint.path)
                engine = start(
                    spec.model.engine,
                    EngineConfig(checkpoint.path, args, spec.sampling, spec.replicas.gpus, spec.metrics.enabled),
                    tokenizer,
                )
                tokenizer.decode(tokenizer.encode_text(name))  # its table is made now, and not while rows wait
        except JobError as error:
            ray.get(board.engine_failed.remote(name, str(error)))
            raise
        finally:
            budget.cancel()
        ray.get(board.report.remote(name, Totals(), Usage(), Load()))
        self._board = board
        self._begun = threading.Event()
        deathless("waiting", functools.partial(_wait, name, board, self._begun), _die)
        # Without a reference to the worker: Ray Data lets go of one that it releases, and it says so as it goes.
        weakref.finalize(self, _release, name, board, self._begun, engine).atexit = False
        self._may_have_rows = may_have_rows
        self._replica = Replica(
            name, job, engine, tokenizer, Prompter(spec, checkpoint.path, tokenizer, int(args["max_model_len"])),
            slots=int(args["max_num_seqs"]), max_model_len=int(args["max_model_len"]),
            board=RayBoard(board, _die), die=_die, notice=preempt.notice, hold=hold,
        )  # fmt: skip

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Answer the shards of a block; what comes back is how many of their rows are left."""
        self._begun.set()
        shards = block.column("shard").to_pylist()
        left = []
        for index, shard in enumerate(shards):
            unpack = functools.partial(next, from_block(block.slice(index, 1)))
            try:
                left.append(await self._replica.run(shard, unpack, may_have_rows=shard in self._may_have_rows))
            except JobError as error:
                await self._board.failed.remote(error)
                raise
            except Exception as error:
                traceback.print_exc()
                await self._board.failed.remote(DefectError(f"shard {shard}: {type(error).__name__}: {error}"))
                raise
        return pa.table({"shard": shards, "left": left})


def this_node() -> str:
    """The name of this process' node for people: its host, and its address in the cluster."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


@contextmanager
def uncollected() -> Iterator[None]:
    """What is made within is there for as long as the process: Python's garbage collector does not look at it.

    It would do so over and over: for 1.4 s of the import of vLLM (780,000 objects), and then for 0.4 s at a time, in
    which the engine is given no row and no token of it is taken.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _wait(name: str, board: Any, begun: threading.Event) -> None:
    """Until its first rows come, a replica serves, and its slots are free; then it reports by itself."""
    began = time.monotonic()
    while not begun.wait(REPORT_INTERVAL_S):
        now = time.monotonic()
        board.report.remote(name, Totals(), Usage(short_s=now - began), Load())
        began = now


def _release(name: str, board: Any, begun: threading.Event, engine: Engine) -> None:
    """Few rows are left, and others have them: the replica gives its devices back."""
    begun.set()
    with suppress(ray.exceptions.RayError):  # the board may be gone already
        ray.get(board.left.remote(name), timeout=LEAVE_S)
    engine.shutdown()


def _give_up_start(name: str, seconds: float, board: Any) -> None:
    """An engine that never starts says nothing by itself: what it printed last may tell why."""
    said = last_words()
    message = f"the engine did not start within {seconds:,.0f} s (replicas.start_timeout_s)"
    message = f"{message}; its last words:\n{said}" if said else message
    try:
        ray.get(board.engine_failed.remote(name, message), timeout=LEAVE_S)
    finally:
        _die()  # also where the board is gone, or does not answer


def _die() -> None:
    """At once, with the engine: an actor whose engine is gone, or hangs, would fail whatever Ray gives it."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)
