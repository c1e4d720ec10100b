"""Every error that magbatch raises or records, in one tree.

```
MagbatchError
├── RowError                     stops one row and becomes its dead letter
│   └── ForeignError             an input file has another format
├── AnswerError                  an answer does not fit; the model is asked again, or the row fails
├── TextError                    a YAML text cannot be read; the caller makes it a SpecError
├── FetchError                   a row's file, object or URL was not fetched; the fetcher makes it a RowError
│   ├── OutOfReachError
│   ├── UnfetchableError
│   └── LateError
├── SandboxError                 a sandboxed request failed; the caller makes it a RowError
│   ├── SandboxTimeoutError
│   ├── SandboxMemoryError
│   └── SandboxDiedError
├── JobError                     ends the command with exit code 2: a person must change something
│   ├── SpecError
│   │   ├── SpecChangedError
│   │   └── LateSpecError
│   ├── InputError  ModelError  OutputError  EngineStartError  ClusterAccessError  SettingsError
│   ├── DefectError              exit code 4
│   ├── TooManyFailedError       exit code 1
│   ├── BenchError
│   └── ResumableError           exit code 3: the same command continues
│       ├── StorageError         exit code 2 if a person must fix something
│       │   ├── RefusedError
│       │   │   └── NoBucketError
│       │   ├── AwsSettingsError
│       │   ├── ThrottledError
│       │   └── FullDiskError
│       ├── LeaseError
│       ├── ClusterError
│       └── InterruptedJobError
├── EngineDeadError              ends the replica, which is replaced
└── RequestRejectedError         one request has no answer
    └── RequestFailedError       the same request may succeed if it is repeated
```

Callers match types and codes, never message strings.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

MAX_MESSAGE_CHARS = 2000  # length of a dead letter's message: a library's message may quote the whole value
_KEPT_END_CHARS = 500  # length kept of the end of a longer message, where libraries put the reason
_ADDRESS = re.compile(r" (?:object )?at 0x[0-9a-fA-F]+")  # address of an object; it differs in each process
# Control sequences of terminals: colours, titles, the clipboard.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # control characters, which end a line or control a terminal


class Step(StrEnum):
    """The step at which a row failed."""

    READ = "read"
    RENDER = "render"
    PROMPT = "prompt"
    GENERATE = "generate"
    PARSE = "parse"
    CHECK = "check"
    WRITE = "write"


class ErrorCode(StrEnum):
    """The reason of a dead letter. A closed list: a new code changes the output contract."""

    FILE_UNREADABLE = "file_unreadable"  # the whole file: not Parquet, cut off, or no access
    FILE_SCHEMA = "file_schema"  # the whole file: lacks a column that the job needs
    FILE_CHANGED = "file_changed"  # the file is no longer the one that was planned
    ROW_UNREADABLE = "row_unreadable"  # the row lies in damaged bytes of a readable file
    MISSING_VALUE = "missing_value"
    TEMPLATE_ERROR = "template_error"
    INVALID_MESSAGES = "invalid_messages"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TIMEOUT = "image_timeout"  # decoding took longer than limits.image_timeout_s
    IMAGE_UNFETCHABLE = "image_unfetchable"
    TOO_MANY_IMAGES = "too_many_images"
    URL_REFUSED = "url_refused"  # a private network, a file or an object that the spec does not allow rows to name
    DOCUMENT_UNREADABLE = "document_unreadable"
    DOCUMENT_ENCRYPTED = "document_encrypted"
    DOCUMENT_EMPTY = "document_empty"  # no bytes, no page, or nothing that input.document.mode asks for
    DOCUMENT_TOO_LARGE = "document_too_large"
    DOCUMENT_TIMEOUT = "document_timeout"  # rendering took longer than limits.document_timeout_s
    DOCUMENT_UNFETCHABLE = "document_unfetchable"
    TOO_MANY_PAGES = "too_many_pages"
    IMAGES_UNSUPPORTED = "images_unsupported"  # the model has no vision encoder
    PROMPT_TOO_LONG = "prompt_too_long"
    ENGINE_REJECTED = "engine_rejected"
    ENGINE_KILLER = "engine_killer"  # the row was in flight in three engines when they died or hung
    # One reader of the shard died, then two readers of this row alone; or many readers of its file.
    READER_KILLER = "reader_killer"
    ANSWER_INVALID = "answer_invalid"  # neither the answer nor a second one fits answer.schema
    ROW_TIMEOUT = "row_timeout"  # a healthy engine gave this row no token for limits.row_timeout_s
    INTERNAL = "internal"  # a defect in magbatch: the message names the exception


class MagbatchError(Exception):
    """The root of the tree."""


def short_message(message: str) -> str:
    """Shorten a message to one line of at most 2,000 characters, without addresses of objects."""
    if len(message) > MAX_MESSAGE_CHARS:
        start = message[: MAX_MESSAGE_CHARS - _KEPT_END_CHARS - 40]
        message = f"{start} … ({len(message):,} characters) … {message[-_KEPT_END_CHARS:]}"
    lines = _CONTROL.sub("\n", message).splitlines()
    text = _ADDRESS.sub("", " ".join(line.strip() for line in lines if line.strip()))
    return text.encode(errors="replace").decode()  # a path may hold bytes that are not text


def one_line(text: str, most: int) -> str:
    """Flatten a library's output to one line without control sequences.

    Args:
        text: Text that a library printed or raised.
        most: Length in characters at which the line is cut.
    """
    flat = " ".join(_CONTROL.sub(" ", _ANSI.sub("", text)).split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


class RowError(MagbatchError):
    """A row cannot be answered.

    Attributes:
        code: Error code of the dead letter.
        message: Line for a person: the fault of this row, and the way to fix it.
        answer: Rejected answer, if the reason is an answer that is not valid.
    """

    def __init__(self, code: ErrorCode, message: str, answer: str | None = None) -> None:
        message = short_message(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.answer = answer


class ForeignError(RowError):
    """An input file has another format than Parquet.

    Attributes:
        foreign: Format of the file, a `Foreign` of `storage/formats.py`.
    """

    def __init__(self, foreign: Any) -> None:
        super().__init__(ErrorCode.FILE_UNREADABLE, f"not a readable Parquet file: it is {foreign.what}")
        self.foreign = foreign


class AnswerError(MagbatchError):
    """An answer that does not fit. The message names the path of the wrong value, for people and for the model."""


class TextError(MagbatchError):
    """A text that a spec may not contain. The message names the line and says what to write."""


class SandboxError(MagbatchError):
    """A request to a sandbox got no reply. Its row fails; other rows continue."""


class SandboxTimeoutError(SandboxError):
    """The request took longer than its time limit."""


class SandboxMemoryError(SandboxError):
    """The request needs more than the sandbox's memory."""


class SandboxDiedError(SandboxError):
    """The request ended the sandbox's process, more than once."""


class FetchError(MagbatchError):
    """A file, object or URL that a row names was not fetched. The fetcher makes this the row's own `RowError`."""


class OutOfReachError(FetchError):
    """The row may not name this: a host of a private network, or a file or object outside the allowed ones."""


class UnfetchableError(FetchError):
    """The file, object or URL cannot be fetched; the message says why."""


class LateError(FetchError):
    """The time for the row's fetches is over."""


class JobError(MagbatchError):
    """The job cannot start, or cannot continue. Committed rows stay."""

    exit_code = 2


class SpecError(JobError):
    """The spec is wrong; the message names the field and what would be right."""


class SpecChangedError(SpecError):
    """The output belongs to a job with another spec; the message shows the difference."""


class LateSpecError(SpecError):
    """The spec was not read in time."""


class InputError(JobError):
    """The input as a whole cannot be used: nothing found, or a bad file under `on_bad_file: fail`."""


class ModelError(JobError):
    """The model's files cannot be fetched, or do not form a checkpoint that magbatch can run."""


class OutputError(JobError):
    """The output location holds no job, or one that this command cannot work on."""


class EngineStartError(JobError):
    """An engine did not start; the message starts with the engine's own error."""


class ClusterAccessError(JobError):
    """The cluster cannot be used: nothing listens at its address, its version differs, or it wants a token."""


class DefectError(JobError):
    """A defect in magbatch; the message names the exception. The same command continues where it stopped."""

    exit_code = 4


class TooManyFailedError(JobError):
    """More rows failed than the spec allows. The job ended early; it continues once the limit is higher."""

    exit_code = 1


class BenchError(JobError):
    """An arm of a benchmark failed, or the arms did different work."""


class ResumableError(JobError):
    """The job stopped before its end; the same command continues where it stopped."""

    exit_code = 3


class SettingsError(JobError):
    """This machine is not set up for the command; the message names the environment variable or the folder."""


class StorageError(ResumableError):
    """Object storage or the disk refused a read or a write that the job needs.

    Attributes:
        passing: Whether the refusal may end by itself: a full disk, or a store that is overloaded or away.
        mistake: Whether a setting is wrong: the store has never answered this command.
        lasting: Whether a person must fix something first; the command then ends with exit code 2.
        missing_root: Whether the bucket in the path does not exist.
        refused: Whether the store answered and denied this request. Access rights may arrive later.
        full: Whether the disk is full, or the user's quota used up.
    """

    missing_root = False
    refused = False
    full = False

    def __init__(self, message: str, *, passing: bool = False, mistake: bool = False) -> None:
        super().__init__(message)
        self.passing, self.mistake = passing, mistake
        self.lasting = mistake or not passing
        self.exit_code = 2 if self.lasting else 3

    @property
    def wrong_at_first(self) -> bool:
        """Whether the given path is wrong, if this refusal is the first reply that the command gets from there."""
        return self.lasting or self.missing_root


@contextmanager
def mistake_in(field: str, kind: "type[JobError]") -> Iterator[None]:
    """Raise a lasting refusal of storage as a mistake in a field of the spec.

    Args:
        field: Name of the field, such as `output.path`.
        kind: Class of the error to raise.

    Raises:
        JobError: Storage refuses for good; the message starts with the field.
    """
    try:
        yield
    except StorageError as error:
        if not error.lasting:
            raise
        raise kind(f"{field}: {error}") from error


class RefusedError(StorageError):
    """The store answers and refuses the request. Later it may accept it: access rights can arrive late."""

    refused = True


class NoBucketError(RefusedError):
    """The bucket does not exist, or is away. As a mere missing object, it would make finished rows look open."""

    missing_root = True


class AwsSettingsError(StorageError):
    """The AWS settings of this machine (environment, profile, files) are wrong; no store was asked."""


class ThrottledError(StorageError):
    """The store gets more requests than it will answer, sometimes for a single prefix."""


class FullDiskError(StorageError):
    """The disk is full, or the user's quota is used up. Free space lets the job continue."""

    full = True


class LeaseError(ResumableError):
    """Another run works on the output."""


class ClusterError(ResumableError):
    """Ray, or its cluster, broke down or cannot be reached."""


class InterruptedJobError(ResumableError):
    """A person or the platform asked the job to stop (SIGINT, SIGTERM)."""


class EngineDeadError(MagbatchError):
    """The engine of a replica is gone. The replica's process must end so that Ray replaces it."""


class RequestRejectedError(MagbatchError):
    """The engine rejects this request and serves other requests."""


class RequestFailedError(RequestRejectedError):
    """A transient failure inside the engine; the request may be repeated."""
