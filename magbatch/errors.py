"""Every error that magbatch raises or records, in one tree.

Two families, told apart by what they stop:

- `RowError` is data. It stops one row, at one step, and becomes that row's dead letter.
- `JobError` stops the job. Each kind carries the exit code that the command ends with.

Callers match types and codes, never message strings.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

MAX_MESSAGE_CHARS = 2000  # of a dead letter: what a library says may quote the whole value
_KEPT_END_CHARS = 500  # of a longer one: where libraries put the reason
_ADDRESS = re.compile(r" (?:object )?at 0x[0-9a-fA-F]+")  # differs from process to process, and says nothing
# Of terminals: colours, titles, the clipboard.
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])"
)  # colours, titles, a clipboard
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # among them those that end a line, or steer a terminal


class Step(StrEnum):
    """The step of a row's way at which it failed."""

    READ = "read"
    RENDER = "render"
    PROMPT = "prompt"
    GENERATE = "generate"
    PARSE = "parse"
    CHECK = "check"
    WRITE = "write"


class ErrorCode(StrEnum):
    """Why a row became a dead letter. A closed list: adding one is a change of the output contract."""

    FILE_UNREADABLE = "file_unreadable"  # the whole file: not Parquet, cut off, or no access
    FILE_SCHEMA = "file_schema"  # the whole file: lacks a column that the job needs
    FILE_CHANGED = "file_changed"  # the file is no longer the one that was planned
    ROW_UNREADABLE = "row_unreadable"  # the row lies in a damaged part of a readable file
    MISSING_VALUE = "missing_value"
    TEMPLATE_ERROR = "template_error"
    INVALID_MESSAGES = "invalid_messages"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TIMEOUT = "image_timeout"  # not decoded within limits.image_timeout_s
    IMAGE_UNFETCHABLE = "image_unfetchable"
    TOO_MANY_IMAGES = "too_many_images"
    URL_REFUSED = "url_refused"  # a private network, a file or an object that the spec does not allow rows to name
    DOCUMENT_UNREADABLE = "document_unreadable"
    DOCUMENT_ENCRYPTED = "document_encrypted"
    DOCUMENT_EMPTY = "document_empty"  # no bytes, no page, or nothing of what input.document.mode asks for
    DOCUMENT_TOO_LARGE = "document_too_large"
    DOCUMENT_TIMEOUT = "document_timeout"  # not rendered within limits.document_timeout_s
    DOCUMENT_UNFETCHABLE = "document_unfetchable"
    TOO_MANY_PAGES = "too_many_pages"
    IMAGES_UNSUPPORTED = "images_unsupported"  # the model has no vision encoder
    PROMPT_TOO_LONG = "prompt_too_long"
    ENGINE_REJECTED = "engine_rejected"
    ENGINE_KILLER = "engine_killer"  # in flight in three engines when they died or hung
    READER_KILLER = (
        "reader_killer"  # two processes died that read it alone, after one that read its shard; or many at its file
    )
    ANSWER_INVALID = "answer_invalid"  # the answer does not fit answer.schema, nor does a second one
    ROW_TIMEOUT = "row_timeout"  # the engine went on, but gave this row no token for limits.row_timeout_s
    INTERNAL = "internal"  # a defect in magbatch: the message names the exception


class MagbatchError(Exception):
    """The root of the tree."""


def short_message(message: str) -> str:
    """A message as dead letters hold it: one line of text, at most 2,000 characters, without addresses of objects."""
    if len(message) > MAX_MESSAGE_CHARS:
        begin = message[: MAX_MESSAGE_CHARS - _KEPT_END_CHARS - 40]
        message = f"{begin} … ({len(message):,} characters) … {message[-_KEPT_END_CHARS:]}"
    lines = _CONTROL.sub("\n", message).splitlines()
    text = _ADDRESS.sub("", " ".join(line.strip() for line in lines if line.strip()))
    return text.encode(errors="replace").decode()  # a path can hold what is no text


def one_line(text: str, most: int) -> str:
    """What a library has printed or raised, as one line of a message: without colours and line ends, and cut."""
    flat = " ".join(_CONTROL.sub(" ", _ANSI.sub("", text)).split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


class RowError(MagbatchError):
    """One row cannot be answered.

    Attributes:
        code: The dead letter's error code.
        message: One line for a person: what is wrong with this row and what would be right.
        answer: The answer that was not accepted, where it is that.
    """

    def __init__(self, code: ErrorCode, message: str, answer: str | None = None) -> None:
        message = short_message(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.answer = answer


class SandboxError(MagbatchError):
    """A request to a sandbox gave no replies: the row behind it cannot be worked on, and others can."""


class SandboxTimeoutError(SandboxError):
    """The request was not done within its time."""


class SandboxMemoryError(SandboxError):
    """The request needs more than the sandbox's memory."""


class SandboxDiedError(SandboxError):
    """The request ended the sandbox's process, more than once."""


class FetchError(MagbatchError):
    """A file, object or URL that a row names was not fetched. The fetcher makes this the row's own `RowError`."""


class OutOfReachError(FetchError):
    """The row may not name this: a host of a private network, or a file or object outside the allowed places."""


class UnfetchableError(FetchError):
    """The file, object or URL cannot be had; the message says why."""


class LateError(FetchError):
    """The time for the row's fetches is over."""


class JobError(MagbatchError):
    """The job cannot start, or cannot go on. Nothing that was committed is lost."""

    exit_code = 2


class SpecError(JobError):
    """The spec is wrong; the message names the field and what would be right."""


class SpecChangedError(SpecError):
    """The output belongs to a job with another spec; the message shows the difference."""


class InputError(JobError):
    """The input as a whole cannot be used: nothing found, or a bad file under `on_bad_file: fail`."""


class ModelError(JobError):
    """The model's files cannot be had or do not form a checkpoint that magbatch can run."""


class OutputError(JobError):
    """The output location holds no job, or one that this command cannot work on."""


class EngineStartError(JobError):
    """An engine did not start; the message begins with the engine's own words."""


class ClusterAccessError(JobError):
    """The cluster cannot be used as it is named: nothing listens there, it is another version, or it wants a token."""


class DefectError(JobError):
    """magbatch itself is wrong somewhere; the message names the exception. The same command goes on where it was."""

    exit_code = 4


class TooManyFailedError(JobError):
    """More rows failed than the job is to have: it ended early, and goes on once its limit allows them."""

    exit_code = 1


class BenchError(JobError):
    """An arm of a benchmark failed, or what the arms did cannot be compared."""


class ResumableError(JobError):
    """The job stopped before its end; the same command goes on where it was."""

    exit_code = 3


class SettingsError(JobError):
    """This machine is not set up for the command: the message names the variable of its environment, or the folder."""


class StorageError(ResumableError):
    """Object storage or the disk refused a read or a write that the job cannot do without.

    Attributes:
        passing: Whether it may pass by itself once a job is under way: a full disk, a store that is overloaded or away.
        mistake: Whether this command has never had an answer of that store, and a setting is wrong.
        lasting: Whether a person has to mend something first: it is a mistake, or does not pass by itself. The command
            then ends with exit code 2.
        missing_root: Whether there is no bucket by the name in the path.
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
        """Whether the path that a person gave is wrong, if this is the first answer that a command gets there."""
        return self.lasting or self.missing_root


@contextmanager
def mistake_in(field: str, kind: "type[JobError]") -> Iterator[None]:
    """What storage refuses, and will go on to refuse, is raised as a mistake in a field of the spec.

    Args:
        field: Name of the field, such as `output.path`.
        kind: The error to raise.
    """
    try:
        yield
    except StorageError as error:
        if not error.lasting:
            raise
        raise kind(f"{field}: {error}") from error


class RefusedError(StorageError):
    """The store answers and refuses the request. Later it may grant it: access rights can arrive late."""

    refused = True


class NoBucketError(RefusedError):
    """The bucket does not exist, or is away. A missing object is different: then finished rows would look open."""

    missing_root = True


class AwsSettingsError(StorageError):
    """The AWS settings of this machine (environment, profile, files) are wrong; no store was asked."""


class ThrottledError(StorageError):
    """The store gets more requests than it will answer, sometimes for a single prefix."""


class FullDiskError(StorageError):
    """The disk is full, or the user's quota is used up. Free space lets the job go on."""

    full = True


class LeaseError(ResumableError):
    """Another run works on the output."""


class ClusterError(ResumableError):
    """Ray, or the cluster it runs on, cannot be reached or broke down."""


class InterruptedJobError(ResumableError):
    """A person or the platform asked the job to stop (SIGINT, SIGTERM)."""


class EngineDeadError(MagbatchError):
    """The engine behind a replica is gone. The replica's process must end so that it is replaced."""


class RequestRejectedError(MagbatchError):
    """The engine has no answer to this one request; it goes on serving others."""


class RequestFailedError(RequestRejectedError):
    """The engine took the request and failed at it by itself: asked again, it may answer."""
