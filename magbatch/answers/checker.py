"""Answers read in processes that may die: no answer, schema or pattern holds a replica up, or its other rows.

An answer that is late, needs too much memory or ends its process is that row's dead letter. The model is not asked for
another: it gives the like. Where nothing can take long (`whole`, `boxed`, a vote over texts) no process is needed.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa

from magbatch.answers.reader import AnswerError, Reader, Reading
from magbatch.errors import ErrorCode, RowError, SandboxDiedError, SandboxMemoryError, SandboxTimeoutError
from magbatch.sandbox import Sandboxes
from magbatch.spec import AnswerSpec

CHECKERS = 4  # processes of one replica: a slow answer leaves room for others; each is started when it is needed
TRIES = 2  # of an answer that is late: the node may have stood still
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
        setup = {"answer": spec.model_dump(mode="json")}
        self._sandboxes = Sandboxes(CHECKERS, f"{__name__}:handler", setup, timeout_s=timeout_s, memory_mb=MEMORY_MB)
        self._threads = ThreadPoolExecutor(CHECKERS, "checker")  # one for each process: a request waits here

    async def __call__(self, answer: str | None) -> Reading:
        """What one answer is made into; NULL gives nothing.

        Raises:
            AnswerError: It does not fit `answer.schema`; another one may.
            RowError: `answer_invalid`: it cannot be checked.
            ClusterError: No process can be started here.
        """
        if answer is None or not self._costly:
            return self._read(answer)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._checked, answer)

    def vote(self, ballots: Sequence[str | None]) -> dict[str, Any] | None:
        """See `Reader.vote`."""
        return self._read.vote(ballots)

    def _checked(self, answer: str) -> Reading:
        for _ in range(TRIES):
            try:
                (reply,) = self._sandboxes({}, answer.encode(errors="replace"))
            except SandboxTimeoutError:
                continue
            except (SandboxMemoryError, SandboxDiedError) as error:
                message = f"{self._field}: cannot be checked: {error}"
                raise RowError(ErrorCode.ANSWER_INVALID, message, answer) from error
            if reply.body is None:
                raise AnswerError(reply.head["wrong"])
            (values,) = pa.ipc.open_stream(reply.body).read_all().to_pylist()
            return Reading(values, reply.head["ballot"])
        late = f"{self._field}: not checked within limits.answer_timeout_s = {self._timeout_s:g}"
        raise RowError(ErrorCode.ANSWER_INVALID, late, answer)


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
