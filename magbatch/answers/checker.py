"""Answers read in processes with limits: no answer, schema or pattern can block a replica or its other rows.

An answer that takes too long, needs too much memory or ends its process makes its row a dead letter. The model is not
asked again, because its next answer would be similar. `whole`, `boxed` and a vote over texts need no process.

Nearly every answer takes milliseconds. An answer that takes longer than `Lanes.quick_s` is read again in one of a few
slow processes, with the full time limit. Fast answers wait for slow ones for a moment only.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from magbatch.answers.reader import Reader, Reading, cut
from magbatch.errors import (
    AnswerError,
    ErrorCode,
    RowError,
    SandboxDiedError,
    SandboxError,
    SandboxMemoryError,
    SandboxTimeoutError,
)
from magbatch.sandbox import Handler, Replies, Sandboxes
from magbatch.spec import AnswerSpec

HANDLER = f"{__name__}:handler"
MEMORY_MB = 1024  # memory limit of one answer; 32k tokens are about 130 KB of text


@dataclass(frozen=True, slots=True)
class Lanes:
    """Processes of one replica that read answers. Each is started at first use.

    Attributes:
        quick: Number of processes in which every answer is read first.
        slow: Number of processes for answers that take longer than `quick_s`.
        quick_s: Time limit of one answer in the quick processes, in seconds.
    """

    quick: int = 4
    slow: int = 2
    quick_s: float = 1.0


class Checker:
    """Step that reads the answers of one replica.

    Args:
        spec: Section `answer` of the spec.
        timeout_s: Time limit of one answer, in seconds.
        lanes: Number of processes, and time limit of the quick ones.
        handler: Request handler of the processes; see `Sandbox`.
    """

    def __init__(self, spec: AnswerSpec, timeout_s: float, lanes: Lanes = Lanes(), handler: str = HANDLER) -> None:
        self._read, self._timeout_s = Reader(spec), timeout_s
        self._costly = spec.may_refuse  # whether reading can take unbounded time or memory
        self._field = "answer.schema" if spec.schema is not None else "answer.extract"
        self._reshapes = spec.schema is not None  # whether the model can be asked again with the error message
        setup = {"answer": spec.model_dump(mode="json")}
        self._quick = _Lane(lanes.quick, handler, setup, min(lanes.quick_s, timeout_s), "checker")
        self._slow = _Lane(lanes.slow, handler, setup, timeout_s, "slow checker")

    async def __call__(self, answer: str | None) -> Reading:
        """Read one answer.

        Args:
            answer: The answer's text; None gives an empty `Reading`.

        Raises:
            AnswerError: The answer does not fit `answer.schema`, or its check has failed. Another answer may fit.
            RowError: `answer_invalid`: the answer cannot be checked within its limits.
            ClusterError: No process can be started on this machine.
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
                raise AnswerError(message) from error  # the check has a defect that another answer may not meet
            raise RowError(ErrorCode.ANSWER_INVALID, f"{self._field}: {message}", answer) from error

    def vote(self, ballots: Sequence[str | None]) -> dict[str, Any] | None:
        """Count the votes of a row; see `Reader.vote`."""
        return self._read.vote(ballots)


class _Lane:
    """Processes that read answers within one time limit.

    Args:
        count: Most processes.
        handler: Request handler of the processes.
        setup: Setup of the handler.
        timeout_s: Time limit of one answer, in seconds.
        name: Prefix of the threads' names.
    """

    def __init__(self, count: int, handler: str, setup: dict[str, Any], timeout_s: float, name: str) -> None:
        self._sandboxes = Sandboxes(count, handler, setup, timeout_s=timeout_s, memory_mb=MEMORY_MB)
        self._threads = ThreadPoolExecutor(count, name)  # one thread per process; further requests wait in its queue

    async def __call__(self, answer: str) -> Reading:
        """Read one answer; raises AnswerError, and the errors of `Sandbox.__call__`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._checked, answer)

    def _checked(self, answer: str) -> Reading:
        (reply,) = self._sandboxes({}, answer.encode(errors="replace"))
        if reply.body is None:
            raise AnswerError(reply.head["wrong"])
        (values,) = pa.ipc.open_stream(reply.body).read_all().to_pylist()
        return Reading(values, reply.head["ballot"])


def handler(setup: dict[str, Any]) -> Handler:
    """Request handler of a process: takes an answer's text, replies with one record of its columns or with an error."""
    read = Reader(AnswerSpec.model_validate(setup["answer"]))
    fields = pa.schema([field for field in read.fields if field.name != "vote"])  # the vote needs all samples of a row

    def check(head: dict[str, Any], body: bytes) -> Replies:
        try:
            reading = read(body.decode())
        except AnswerError as error:
            yield {"wrong": str(error)}, None
        else:
            yield {"ballot": reading.ballot}, _packed([reading.values], fields)

    with suppress(AnswerError):  # loads and compiles before the first request, whose time is limited
        read("{}")
    _packed([], fields)
    return check


def _packed(records: list[dict[str, Any]], fields: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, fields) as writer:
        writer.write_table(pa.Table.from_pylist(records, fields))
    packed: bytes = sink.getvalue().to_pybytes()
    return packed
