"""What is carried from step to step, and the Arrow schemas of what is written.

The carriers import no step, so every step can import them. Two contracts are fixed here:

- `results_schema` and `errors_schema`: the columns that users read. They depend on the carried
  columns of the job and on nothing else; they are never inferred from data.
- `ObjectName`: the name of a committed object. It carries the number of input rows that the object
  finishes, so that one listing of names tells which shards are complete.
"""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self, TypeAlias

import pyarrow as pa

from magbatch.errors import ErrorCode, Step, short_message

# Of an unfinished row's token: in the prompt's array, and in the list of integers that the engine is given.
TOKEN_BYTES = 4 + 36
_PACKING = "lz4_raw"  # of pixels

TokenIds: TypeAlias = "array[int]"


def as_ids(ids: Iterable[int] | bytes = ()) -> TokenIds:
    """Token ids as prompts hold them, of any others or of the bytes of such: 4 bytes each.

    A replica holds millions: in lists each takes 36 bytes, and Python's garbage collector looks at it over and over.
    """
    return array("i", ids)


class ReasoningStatus(StrEnum):
    """How the thinking of an answer ended. A closed list."""

    COMPLETE = "complete"
    BUDGET = "budget"
    TRUNCATED = "truncated"
    ABSENT = "absent"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one input file.

    Attributes:
        path: The file.
        key: The file's part of the row ids: a hash of its path below the input.
        size: Bytes the file had when it was planned.
        tag: ETag or modification time it had then.
        start: Position of the first row in the file.
        rows: How many; 1 for a file that was unreadable when planned.
        problem: Why the whole file cannot be read, else None.
        code: The error code that belongs to the problem.
        digest: Fingerprint of a file on a disk, else None: see `DiskFile`.
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
        """The ids of its rows, in the order of the file; an unreadable file counts as one row."""
        if self.problem is not None:
            return [self.key]
        return [f"{self.key}-{position:09d}" for position in range(self.start, self.start + self.rows)]


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work and of the ledger: some rows that one replica answers together.

    Attributes:
        index: The shard's number in the plan.
        segments: Where its rows are; several where files are small or rows are sampled.
    """

    index: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Input rows of the shard."""
        return sum(segment.rows for segment in self.segments)

    def row_ids(self) -> list[str]:
        """The ids of its rows, in order."""
        return [row_id for segment in self.segments for row_id in segment.row_ids()]


@dataclass(slots=True)
class InputRow:
    """One row as read: the values of the columns that the job uses.

    Attributes:
        row_id: magbatch's own id, from the file and the row's position in it.
        values: Column name to Python value. A null cell is absent.
        folder: Where the file lies; relative image paths start here.
    """

    row_id: str
    values: dict[str, Any]
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image, at the size in which the model sees it: packed where it is made, unpacked for the engine.

    A drawn page is a tenth of its pixels then, on its way through pipes, Ray's object store and a replica's memory.

    Attributes:
        width: Pixels.
        height: Pixels.
        packed: The pixels as one block of LZ4 (a gigabyte a second); noise is no larger than before, but for 0.4%.
    """

    width: int
    height: int
    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, width: int, height: int, rgb: bytes | memoryview) -> Self:
        """An image of its pixels: `height * width * 3` bytes, row by row."""
        return cls(width, height, pa.compress(pa.py_buffer(rgb), codec=_PACKING, asbytes=True))

    @property
    def rgb(self) -> bytes:
        """The pixels, unpacked: `size_bytes` of them, row by row."""
        return bytes(pa.decompress(self.packed, self.size_bytes, codec=_PACKING, asbytes=True))

    @property
    def size_bytes(self) -> int:
        """Unpacked."""
        return 3 * self.width * self.height

    @property
    def digest(self) -> str:
        """The same for who is the same picture; 32 characters."""
        salt = self.width.to_bytes(4, "little")
        return hashlib.blake2b(self.packed, digest_size=16, salt=salt).hexdigest()


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a row's document.

    Attributes:
        number: From 1.
        text: Its text: embedded in a PDF, or the page of a text document itself; None where it has none or the
            job does not want it.
        image: Its picture; None where it has none or the job does not want it.
        blank: Its picture shows nothing, and no text of it is shown.
    """

    number: int
    text: str | None = None
    image: Image | None = None
    blank: bool = False


@dataclass(slots=True)
class RenderedRow:
    """A row's documents as text and images: chat messages whose images are positions in `images`.

    Attributes:
        row_id: magbatch's own id.
        messages: `{"role", "content"}` dicts; content is a list of `{"text": str}` and
            `{"image": int}` parts.
        images: The decoded images, in the order of their positions.
        pages: Of the document that is asked about, those that may be shown; not yet part of any message.
        total_pages: That the document has.
    """

    row_id: str
    messages: list[dict[str, Any]]
    images: list[Image] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    total_pages: int = 0


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Pages of a document that are asked about together.

    Attributes:
        first_page: From 1.
        last_page: The last of them.
        token_ids: A whole prompt about these pages alone; empty where they are in the row's own prompt.
        images: As many as that prompt has image ends.
        truncated: Of what was to be shown, something is left out.
    """

    first_page: int
    last_page: int
    token_ids: TokenIds = field(default_factory=as_ids)
    images: list[Image] = field(default_factory=list)
    truncated: bool = False


@dataclass(slots=True)
class Prompt:
    """A row as the engine takes it.

    Attributes:
        row_id: magbatch's own id.
        token_ids: The whole prompt, image tokens already expanded; empty where a document is read in parts first.
        images: As many as the prompt has image ends; of a row in parts, those that its messages hold.
        total_pages: Of the row's document; 0 for a row without one.
        page_groups: Pages that are asked about: one group in the row's own prompt, or several with a prompt each.
        messages: Of a row in parts: what is asked, as in `RenderedRow`.
        max_tokens: That a sample of it may have; None leaves it to the job.
        truncated: Pages of the document, or the end of a page's text, are left out.
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
        """Whether its document is read in parts, and the answers to those then make the prompt."""
        return bool(self.page_groups) and bool(self.page_groups[0].token_ids)

    @property
    def requests(self) -> int:
        """How many requests it makes of the engine at once."""
        return len(self.page_groups) if self.reads_page_groups else 1

    @property
    def size_bytes(self) -> int:
        """Memory of the row while it is unfinished: the engine has its ids in lists too, its images unpacked."""
        held: list[Prompt | PageGroup] = [self, *self.page_groups]
        return sum(TOKEN_BYTES * len(one.token_ids) + sum(image.size_bytes for image in one.images) for one in held)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample as the engine returned it.

    Attributes:
        token_ids: The generated tokens.
        finish_reason: vLLM's word: `stop`, `length`, `repetition`, `abort`.
        opened: The prompt itself ended with the token that opens thinking.
        forced: How many of the tokens were put there, not generated: the one that closes thinking.
        status: How the thinking ended, where who asked knows better than the tokens say.
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
        completions: In the order of the samples.
        cached_tokens: Prompt tokens found in the engine's prefix cache.
        latency_s: Seconds from submission to the last token.
    """

    completions: list[Completion]
    cached_tokens: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample, split into what the model thought and what it said.

    Attributes:
        values: Of the columns that the job has its answers made into, by name.
        ballot: Vote of the sample, if the samples of a row vote.
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
    """What was said about some pages of a row's document; of pages in the row's own prompt nothing on their own."""

    first_page: int
    last_page: int
    reasoning: str | None = None
    status: ReasoningStatus | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row that has its answers, ready to be written: one record for each sample.

    Attributes:
        truncated: Something of its document, or of the answers to the document's parts, was shown to no one.
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
    """A row that has no answer, and why in one short line; with the answer that was not accepted.

    Attributes:
        prompt_tokens: Tokens of the prompt, if the engine was asked; those after it as the engine counted them.
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
