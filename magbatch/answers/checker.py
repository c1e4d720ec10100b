"""Answers read in processes that may die: no answer, schema or pattern holds a replica up, or its other rows.

An answer that is late, needs too much memory or ends its process is that row's dead letter. The model is not asked for
another: it gives the like. Where nothing can take long (`whole`, `boxed`, a vote over texts) no process is needed.

Nearly every answer takes milliseconds. One that does not is read from its beginning in one of a few other processes,
where it has all of its time: the many wait for it for a moment only.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa

from magbatch.answers.reader import AnswerError, Reader, Reading, cut
from magbatch.errors import (
    ErrorCode,
    RowError,
    SandboxDiedError,
    SandboxError,
    SandboxMemoryError,
    SandboxTimeoutError,
)
from magbatch.sandbox import Sandboxes
from magbatch.spec import AnswerSpec

HANDLER = f"{__name__}:handler"
CHECKERS = 4  # processes of one replica, each started when it is needed
SLOW_CHECKERS = 2  # for answers that are late there
QUICK_S = 1.0  # of one answer in the first of these
MEMORY_MB = 1024  # of one answer: 32k tokens are some 130 KB of text


class Checker:
    """Reads the answers of one replica.

    Args:
        spec: The job's `answer`.
        timeout_s: Seconds that one answer may take.
    """

    def __init__(self, spec: AnswerSpec, timeout_s: float) -> None:
        self._read, self._timeout_s = Reader(spec), timeout_s
        self._costly = spec.may_refuse  # whether an answer can make the reading take time or memory without a bound
        self._field = "answer.schema" if spec.schema is not None else "answer.extract"
        self._reshapes = spec.schema is not None  # whether the model can be told what is wrong, and asked again
        setup = {"answer": spec.model_dump(mode="json")}
        self._quick = _Lane(CHECKERS, setup, min(QUICK_S, timeout_s), "checker")
        self._slow = _Lane(SLOW_CHECKERS, setup, timeout_s, "slow checker")

    async def __call__(self, answer: str | None) -> Reading:
        """What one answer is made into; NULL gives nothing.

        Raises:
            AnswerError: It does not fit `answer.schema`, or its check met a defect; another one may fit.
            RowError: `answer_invalid`: it cannot be checked.
            ClusterError: No process can be started here.
        """
        if answer is None or not self._costly:
            return self._read(answer)
        try:
            try:
                return await self._quick(answer)
            except SandboxTimeoutError:
                return await self._slow(answer)
        except SandboxTimeoutError as error:
            late = f"{self._field}: not checked within limits.answer_timeout_s = {self._timeout_s:g}"
            raise RowError(ErrorCode.ANSWER_INVALID, late, answer) from error
        except SandboxError as error:
            message = cut(f"cannot be checked: {error}")
            if self._reshapes and not isinstance(error, SandboxMemoryError | SandboxDiedError):
                raise AnswerError(message) from error  # a defect that this answer has met: another one may not
            raise RowError(ErrorCode.ANSWER_INVALID, f"{self._field}: {message}", answer) from error

    def vote(self, ballots: Sequence[str | None]) -> dict[str, Any] | None:
        """See `Reader.vote`."""
        return self._read.vote(ballots)


class _Lane:
    """Processes that read answers, for a while each.

    Args:
        count: Processes at most.
        setup: For `handler`.
        timeout_s: Seconds that one answer may take here.
        name: Prefix of the threads' names.
    """

    def __init__(self, count: int, setup: dict[str, Any], timeout_s: float, name: str) -> None:
        self._sandboxes = Sandboxes(count, HANDLER, setup, timeout_s=timeout_s, memory_mb=MEMORY_MB)
        self._threads = ThreadPoolExecutor(count, name)  # one for each process: a request waits here

    async def __call__(self, answer: str) -> Reading:
        """What an answer is made into; raises AnswerError, and what `Sandbox.__call__` does."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._checked, answer)

    def _checked(self, answer: str) -> Reading:
        (reply,) = self._sandboxes({}, answer.encode(errors="replace"))
        if reply.body is None:
            raise AnswerError(reply.head["wrong"])
        (values,) = pa.ipc.open_stream(reply.body).read_all().to_pylist()
        return Reading(values, reply.head["ballot"])


def handler(setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Iterator[tuple[dict[str, Any], bytes | None]]]:
    """In the process: an answer's text -> one record of its columns, or what is wrong with it."""
    read = Reader(AnswerSpec.model_validate(setup["answer"]))
    fields = pa.schema([field for field in read.fields if field.name != "vote"])  # that is over all samples

    def check(head: dict[str, Any], body: bytes) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        try:
            reading = read(body.decode())
        except AnswerError as error:
            yield {"wrong": str(error)}, None
        else:
            yield {"ballot": reading.ballot}, _packed([reading.values], fields)

    with suppress(AnswerError):  # what the first answer would load and build takes nothing of its time
        read("{}")
    _packed([], fields)
    return check


def _packed(records: list[dict[str, Any]], fields: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, fields) as writer:
        writer.write_table(pa.Table.from_pylist(records, fields))
    packed: bytes = sink.getvalue().to_pybytes()
    return packed
