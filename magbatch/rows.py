"""The records that carry a row from step to step.

They import no step, so every step can import them. Their order is the way of a row: segment, shard, input row, rendered
row, prompt, generation, answer, finished row; or a dead letter at any step.
"""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Self, TypeAlias

import pyarrow as pa

from magbatch.errors import ErrorCode, Step, short_message

# Memory of one prompt token of an unfinished row: 4 bytes in the prompt's array, 36 in the engine's list of integers.
TOKEN_BYTES = 4 + 36
_PIXEL_CODEC: Final = "lz4_raw"

TokenIds: TypeAlias = "array[int]"


def as_ids(ids: Iterable[int] | bytes = ()) -> TokenIds:
    """Pack token ids into an array of int32, the form in which prompts hold them.

    A replica holds millions of ids. In a list each takes 36 bytes, and Python's garbage collector scans it repeatedly.

    Args:
        ids: Token ids, or the bytes of such an array.
    """
    return array("i", ids)


class ReasoningStatus(StrEnum):
    """State of an answer's reasoning at its end. A closed list; the output column `reasoning_status` holds it."""

    COMPLETE = "complete"
    BUDGET = "budget"
    TRUNCATED = "truncated"
    ABSENT = "absent"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one input file.

    Attributes:
        path: Local path or s3:// URL of the file.
        key: Start of the row ids: a hash of the file's path below the input.
        size: Size of the file in bytes when it was planned.
        tag: ETag of the object, or modification time of the file (ns), when it was planned.
        start: Position of the first row in the file, from 0.
        rows: Number of rows; 1 for a file that was unreadable when it was planned.
        problem: Reason why the whole file cannot be read; None for a good file.
        code: Error code of the problem.
        digest: Fingerprint of a file on a disk (see `DiskFile`); None for an object.
    """

    path: str
    key: str
    size: int
    tag: str
    start: int
    rows: int
    problem: str | None = None
    code: ErrorCode | None = None
    digest: str | None = None

    def row_ids(self) -> list[str]:
        """Ids of the rows, in the order of the file; an unreadable file counts as one row."""
        if self.problem is not None:
            return [self.key]
        return [f"{self.key}-{position:09d}" for position in range(self.start, self.start + self.rows)]


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows that one replica answers together: the unit of work, and of the ledger.

    Attributes:
        index: Number of the shard in the plan, from 0.
        segments: Runs of its rows; several if files are small, rows are grouped, or rows are sampled.
    """

    index: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Input rows of the shard."""
        return sum(segment.rows for segment in self.segments)

    def row_ids(self) -> list[str]:
        """Ids of the rows, in the order of the segments."""
        return [row_id for segment in self.segments for row_id in segment.row_ids()]


@dataclass(slots=True)
class InputRow:
    """Values of one input row, as read.

    Attributes:
        row_id: Stable id, made from the file's path and the row's position in the file.
        values: Python values by column name; a null cell is absent.
        folder: Folder of the input file; relative image paths start here.
    """

    row_id: str
    values: dict[str, Any]
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image at the size in which the model sees it.

    The pixels are packed after decoding and unpacked for the engine. That way, a drawn page takes a tenth of the memory
    in pipes, in Ray's object store and in a replica.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        packed: RGB pixels as one LZ4 block. Packing runs at 1 GB/s, and pure noise grows by 0.4%.
    """

    width: int
    height: int
    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, width: int, height: int, rgb: bytes | memoryview) -> Self:
        """Pack pixels.

        Args:
            width: Width in pixels.
            height: Height in pixels.
            rgb: Pixels, uint8 of shape (height, width, 3).
        """
        return cls(width, height, pa.compress(pa.py_buffer(rgb), codec=_PIXEL_CODEC, asbytes=True))

    @property
    def rgb(self) -> bytes:
        """Unpacked pixels, uint8 of shape (height, width, 3)."""
        return bytes(pa.decompress(self.packed, self.size_bytes, codec=_PIXEL_CODEC, asbytes=True))

    @property
    def size_bytes(self) -> int:
        """Size of the unpacked pixels in bytes."""
        return 3 * self.width * self.height

    @property
    def digest(self) -> str:
        """Content hash: 32 hex characters, equal for equal images."""
        salt = self.width.to_bytes(4, "little")
        return hashlib.blake2b(self.packed, digest_size=16, salt=salt).hexdigest()


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a row's document.

    Attributes:
        number: Page number, from 1.
        text: Text embedded in a PDF, or the page of a text document; None if the page has none or the job wants none.
        image: Picture of the page; None if the page has none or the job wants none.
        blank: Whether the picture shows nothing and the page has no text.
    """

    number: int
    text: str | None = None
    image: Image | None = None
    blank: bool = False


@dataclass(slots=True)
class RenderedRow:
    """A row as chat messages, whose images are positions in `images`.

    Attributes:
        row_id: Stable id of the row.
        messages: Dicts `{"role", "content"}`; content is a list of `{"text": str}` and `{"image": int}` items.
        images: Decoded images, in the order of their positions.
        pages: Pages of the row's document that may be shown; they are in no message yet.
        total_pages: Number of pages of the document.
    """

    row_id: str
    messages: list[dict[str, Any]]
    images: list[Image] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    total_pages: int = 0


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Neighbouring pages of a document that share one prompt.

    Attributes:
        first_page: First page, from 1.
        last_page: Last page, included.
        token_ids: Whole prompt about these pages; empty if the pages are in the row's own prompt.
        images: Images of that prompt, one for each image end token.
        truncated: Whether some of the pages' content is left out.
    """

    first_page: int
    last_page: int
    token_ids: TokenIds = field(default_factory=as_ids)
    images: list[Image] = field(default_factory=list)
    truncated: bool = False


@dataclass(slots=True)
class Prompt:
    """A row in the form that the engine takes.

    Attributes:
        row_id: Stable id of the row.
        token_ids: Whole prompt with expanded image tokens; empty if the document is read in page groups first.
        images: Images, one for each image end token; for a row in page groups, the images of its messages.
        total_pages: Number of pages of the row's document; 0 without a document.
        page_groups: Page groups: one inside the row's own prompt, or several with a prompt each.
        messages: Question of a row in page groups, in the form of `RenderedRow`; else empty.
        max_tokens: Limit of tokens for each sample of this row; None takes the job's.
        truncated: Whether pages, or the end of a page's text, are left out.
    """

    row_id: str
    token_ids: TokenIds
    images: list[Image] = field(default_factory=list)
    total_pages: int = 0
    page_groups: list[PageGroup] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    max_tokens: int | None = None
    truncated: bool = False

    @property
    def reads_page_groups(self) -> bool:
        """Whether the model is asked about page groups first, whose answers then make the prompt."""
        return bool(self.page_groups) and bool(self.page_groups[0].token_ids)

    @property
    def requests(self) -> int:
        """Number of engine requests that the row makes at once."""
        return len(self.page_groups) if self.reads_page_groups else 1

    @property
    def size_bytes(self) -> int:
        """Memory of the unfinished row in bytes: ids in the prompt and in the engine, and images unpacked."""
        held: list[Prompt | PageGroup] = [self, *self.page_groups]
        return sum(TOKEN_BYTES * len(one.token_ids) + sum(image.size_bytes for image in one.images) for one in held)


@dataclass(frozen=True, slots=True)
class Completion:
    """A sample as the engine returned it.

    Attributes:
        token_ids: Generated tokens.
        finish_reason: Finish reason in vLLM's words: `stop`, `length`, `repetition` or `abort`.
        opened: Whether the prompt ended with the token that opens reasoning.
        forced: Number of tokens that were inserted, not generated: the token that closes reasoning.
        status: Status that overrides the one derived from the tokens, e.g. when the budget cut the reasoning.
    """

    token_ids: list[int]
    finish_reason: str
    opened: bool = False
    forced: int = 0
    status: ReasoningStatus | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """All samples of one row.

    Attributes:
        completions: Completions, in the order of the samples.
        cached_tokens: Number of prompt tokens found in the engine's prefix cache.
        latency_s: Seconds from submission to the last token.
    """

    completions: list[Completion]
    cached_tokens: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample, split into reasoning and answer.

    Attributes:
        values: Values of the job's answer columns, by column name.
        ballot: Vote of the sample; None if the samples of a row do not vote.
    """

    reasoning: str | None
    status: ReasoningStatus
    answer: str | None
    finish_reason: str
    reasoning_tokens: int
    answer_tokens: int
    values: dict[str, Any] = field(default_factory=dict)
    ballot: str | None = None


@dataclass(frozen=True, slots=True)
class PageGroupAnswer:
    """The answer to one page group; empty for pages that were in the row's own prompt."""

    first_page: int
    last_page: int
    reasoning: str | None = None
    status: ReasoningStatus | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """An answered row, ready to be written as one record for each sample.

    Attributes:
        truncated: Whether the model did not see some of the document, or some answers to its page groups.
    """

    row_id: str
    prompt_tokens: int
    cached_tokens: int
    latency_s: float
    answers: list[Answer]
    finished_at: datetime
    vote: dict[str, Any] | None = None
    total_pages: int = 0
    page_group_answers: list[PageGroupAnswer] = field(default_factory=list)
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row without an answer, with the reason in one short line.

    Attributes:
        answer: Rejected answer, if the reason is that an answer was not valid.
        prompt_tokens: Tokens of the prompt if the engine was asked, else 0. The other counts are the engine's.
    """

    row_id: str
    step: Step
    code: ErrorCode
    message: str
    answer: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", short_message(self.message))
