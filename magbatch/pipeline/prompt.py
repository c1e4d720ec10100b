"""Messages, images and pages -> the token ids that the engine takes.

The spec decides about a document that does not fit one prompt. The row is refused, the first pages are shown, or the
model is asked about page groups, and their answers are combined.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from magbatch.counts import counted
from magbatch.errors import ErrorCode, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.chat import ChatEncoder, before_the_question
from magbatch.pipeline.splitting import pieces_to_count, split
from magbatch.rows import Image, Page, PageGroup, PageGroupAnswer, Prompt, RenderedRow, TokenIds, as_ids
from magbatch.spec import JobSpec

# Texts that the model reads: a change here changes answers. Mistral's tokenizers put an empty line between texts that
# follow each other.
CAPTION = "Page {number} of {total}:\n"
GROUP_NOTE = (
    "These are pages {first} to {last} of {total} of one document; the others are asked about on their own. "
    "Answer from these pages alone, and say what they leave open."
)
FINDING = "Pages {first} to {last}:\n{answer}\n\n"
BLANK = "(This page shows nothing.)"
NO_ANSWER = "(no answer about these pages)"
COMBINE = (
    "A document of {total} pages was read in parts, and each part was asked the question below. What they answered:"
    "\n\n{findings}Now answer for {pages}."
)
PAGE_TOKENS = 16  # tokens of a page's caption and of the numbers in the texts above
LEAST_ROOM_TOKENS = 64  # room for pages, or for one finding, below which a prompt would show next to nothing


@dataclass(slots=True)
class _Findings:
    """Neighbouring findings that one prompt shows.

    Attributes:
        first_page: First page of the first finding.
        last_page: Last page of the last finding.
        notes: Findings as one text, each under its page numbers.
        cut: Whether the end of an answer is left out.
    """

    first_page: int
    last_page: int
    notes: list[str] = field(default_factory=list)
    cut: bool = False


class Prompter:
    """Builds the prompts of a job.

    Args:
        spec: Spec of the job: system prompt, overflow of documents, and limits.
        checkpoint: Directory with the model's files.
        tokenizer: Mistral's tokenizer of the model.
        max_model_len: Tokens that the engine can hold for one row, answer included.

    Raises:
        ModelError: The model's files do not give the system prompt or the effort that the spec asks for.
        SpecError: The text that all prompts share leaves no room for a row.
    """

    def __init__(self, spec: JobSpec, checkpoint: Path, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._chat = ChatEncoder(spec, checkpoint, tokenizer, max_model_len)
        self._overflow = spec.input.document.overflow
        self._max_images, self._max_pages = spec.limits.max_images, spec.limits.max_pages

    def __call__(self, row: RenderedRow) -> Prompt:
        """Build the prompt of a row.

        Raises:
            RowError: `invalid_messages`, `prompt_too_long`, `too_many_images` or `too_many_pages`.
        """
        if not row.pages:
            token_ids, images = self._chat.encode(row.messages, row.images)
            self._chat.check_length(len(token_ids))
            return Prompt(row.row_id, token_ids, images)
        whole = self._whole(row, row.pages)
        if whole is not None:
            return whole
        if self._overflow == "truncate":
            return self._truncated(row)
        if self._overflow == "map_reduce":
            groups = [self._page_group(row, pages) for pages in self._split_pages(row)]
            truncated = len(row.pages) < row.total_pages
            return Prompt(row.row_id, as_ids(), row.images, row.total_pages, groups, row.messages, truncated=truncated)
        raise self._too_long(row)

    def combine(self, prompt: Prompt, findings: Sequence[PageGroupAnswer]) -> list[PageGroup]:
        """The next prompts for a document that is read in page groups.

        Args:
            prompt: Prompt of the row, with the question.
            findings: Answers about page groups, in the order of the pages.

        Returns:
            A single prompt over all findings if they fit. Otherwise several prompts over neighbouring findings, always
            fewer than `findings`; their answers are the next findings to combine.

        Raises:
            RowError: `prompt_too_long`: not even two findings fit next to the question.
        """
        room = self._room(prompt.messages, prompt.images, COMBINE.format(total=0, pages="", findings=""))
        if room < 2 * LEAST_ROOM_TOKENS:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG, "the question leaves no room to combine the answers about page groups"
            )
        together = self._join_findings(findings, room)
        groups = []
        for shown in together:
            first, last = shown.first_page, shown.last_page
            pages = "the whole document" if len(together) == 1 else f"pages {first} to {last}"
            text = COMBINE.format(total=prompt.total_pages, findings="".join(shown.notes), pages=pages)
            messages = before_the_question(prompt.messages, [{"text": text}])
            token_ids, images = self._chat.encode(messages, prompt.images)
            self._chat.check_length(len(token_ids))
            groups.append(PageGroup(first, last, token_ids, images, shown.cut))
        return groups

    def _join_findings(self, findings: Sequence[PageGroupAnswer], room: int) -> list[_Findings]:
        """Neighbouring findings in groups that fit `room` tokens each; at least two fit in a group."""
        together: list[_Findings] = []
        left = 0
        for finding in findings:
            first, last = finding.first_page, finding.last_page
            whole = FINDING.format(first=first, last=last, answer=finding.answer or NO_ANSWER)
            note = self._cut(whole, room // 2 - 2)
            size = self._chat.count(note) + 2  # at a seam, one token of two texts may become two
            if not together or size > left:
                together.append(_Findings(first, last))
                left = room
            group = together[-1]
            group.notes.append(note)
            group.last_page = last
            group.cut |= len(note) < len(whole)
            left -= size
        return together

    def _whole(self, row: RenderedRow, pages: list[Page]) -> Prompt | None:
        """A prompt that shows these pages; None if it would be too long or have too many images."""
        if not pages or self._images_of(row, pages) > self._max_images:
            return None
        tokens = 0
        for page in pages:  # stops at the limit: a long document would be encoded to its end only to be refused
            tokens += self._page_tokens(page, most=self._chat.limit + 2 * PAGE_TOKENS - tokens) - PAGE_TOKENS
            if tokens > self._chat.limit + PAGE_TOKENS:
                return None
        token_ids, images = self._encode(row, pages)
        if len(token_ids) > self._chat.limit:
            return None
        group = PageGroup(pages[0].number, pages[-1].number)
        truncated = len(pages) < row.total_pages
        return Prompt(row.row_id, token_ids, images, row.total_pages, [group], truncated=truncated)

    def _encode(self, row: RenderedRow, pages: list[Page], note: str = "") -> tuple[TokenIds, list[Image]]:
        """Encode a row's chat with pages, and a note after them, before its question."""
        images, shown = list(row.images), list[dict[str, Any]]()
        for page in pages:
            caption = CAPTION.format(number=page.number, total=row.total_pages) if row.total_pages > 1 else ""
            if page.image is not None:
                images.append(page.image)
                shown += [{"text": caption}] if caption else []
                shown.append({"image": len(images) - 1})
                caption = ""
            text = _text_of(page)
            if caption or text:
                shown.append({"text": f"{caption}{text}"})
        if note:
            shown.append({"text": note})
        return self._chat.encode(before_the_question(row.messages, shown), images)

    def _page_group(self, row: RenderedRow, pages: list[Page]) -> PageGroup:
        """A prompt of its own about some pages."""
        first, last = pages[0].number, pages[-1].number
        note = GROUP_NOTE.format(first=first, last=last, total=row.total_pages)
        token_ids, images = self._encode(row, pages, note)
        self._chat.check_length(len(token_ids))
        return PageGroup(first, last, token_ids, images)

    def _truncated(self, row: RenderedRow) -> Prompt:
        """A prompt with the first pages that fit; if the first page alone is too long, the beginning of its text."""
        room = self._room(row.messages, row.images, "")
        pages: list[Page] = []
        for page in row.pages:
            if self._images_of(row, [*pages, page]) > self._max_images:
                break
            room -= self._page_tokens(page, most=room)
            if room < 0:
                break
            pages.append(page)
        while pages:
            prompt = self._whole(row, pages)
            if prompt is not None:
                return prompt
            pages.pop()
        first = row.pages[0]
        room = self._room(row.messages, row.images, "") - self._page_tokens(replace(first, text=None), most=0)
        if first.text is not None and room >= LEAST_ROOM_TOKENS:
            prompt = self._whole(row, [replace(first, text=self._cut(first.text, room))])
            if prompt is not None:
                return replace(prompt, truncated=True)
        raise self._too_long(row)

    def _split_pages(self, row: RenderedRow) -> Iterator[list[Page]]:
        """Neighbouring pages that fit a prompt together; a text that is too long alone is split."""
        room = self._room(row.messages, row.images, GROUP_NOTE)
        most_images = self._max_images - len(row.images)
        group: list[Page] = []
        left, images, count = room, most_images, 0
        for page in self._fitting(row.pages, room):
            tokens = self._page_tokens(page, most=room)
            if tokens > room or (page.image is not None and most_images < 1):
                raise self._too_long(row)
            if tokens > left or (page.image is not None and not images):
                yield group
                count += 1
                if count >= self._max_pages:
                    raise RowError(
                        ErrorCode.TOO_MANY_PAGES,
                        f"the document makes more page groups than limits.max_pages = {self._max_pages}",
                    )
                group, left, images = [], room, most_images
            group.append(page)
            left -= tokens
            images -= page.image is not None
        yield group

    def _fitting(self, pages: list[Page], room: int) -> Iterator[Page]:
        """The pages; a page whose text does not fit `room` tokens becomes several with the same number."""
        for page in pages:
            if page.text is None or self._page_tokens(page, most=room) <= room:
                yield page
                continue
            if page.image is not None:
                yield replace(page, text=None)
            for text in split(page.text, room - PAGE_TOKENS, self._chat.count):
                yield Page(page.number, text)

    def _cut(self, text: str, room: int) -> str:
        """The beginning of a text: at most `room` tokens."""
        fits = not self._chat.surely_exceed([text], room) and self._chat.count(text) <= room
        return text if fits else next(split(text, room, self._chat.count), "")

    def _room(self, messages: list[dict[str, Any]], images: list[Image], note: str) -> int:
        """Tokens that a prompt has left for pages, next to the question and a note.

        Raises:
            RowError: `prompt_too_long`: less than `LEAST_ROOM_TOKENS` are left.
        """
        asked, _ = self._chat.encode(before_the_question(messages, [{"text": note}] if note else []), images)
        room = self._chat.limit - len(asked) - PAGE_TOKENS
        if room < LEAST_ROOM_TOKENS:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the question has {len(asked)} tokens: {self._chat.limit} ({self._chat.limit_name}) leave no room "
                "for pages",
            )
        return room

    def _page_tokens(self, page: Page, most: int) -> int:
        """Tokens that a page takes with its caption, rounded up; counting stops once there are more than `most`."""
        tokens = PAGE_TOKENS
        if page.image is not None:
            tokens += self._chat.tokenizer.image_tokens(page.image)
        for piece in pieces_to_count(_text_of(page)):
            if tokens > most:
                break
            tokens += self._chat.count(piece)
        return tokens

    @staticmethod
    def _images_of(row: RenderedRow, pages: list[Page]) -> int:
        return len(row.images) + sum(page.image is not None for page in pages)

    def _too_long(self, row: RenderedRow) -> RowError:
        images = self._images_of(row, row.pages)
        if images > self._max_images:
            return RowError(
                ErrorCode.TOO_MANY_IMAGES, f"{images} images and pages, above limits.max_images = {self._max_images}"
            )
        return RowError(
            ErrorCode.PROMPT_TOO_LONG,
            f"the document's {counted(row.total_pages, 'page')} and the question have more than {self._chat.limit} "
            f"tokens ({self._chat.limit_name}); see input.document.overflow for what to do with long documents",
        )


def _text_of(page: Page) -> str:
    """The text that stands for a page, next to its picture."""
    return page.text or (BLANK if page.blank else "")
