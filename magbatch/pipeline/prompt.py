"""Messages, images and pages -> the token ids that the engine takes.

The spec decides about a document that does not fit one prompt. The row is refused, the first pages are shown, or the
model is asked about page groups, and their answers are combined.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from magbatch.counts import counted
from magbatch.errors import ErrorCode, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.chat import ChatEncoder
from magbatch.pipeline.combine import Combiner
from magbatch.pipeline.page_chat import LEAST_ROOM_TOKENS, PAGE_TOKENS, PageChat
from magbatch.pipeline.splitting import split
from magbatch.rows import Page, PageGroup, PageGroupAnswer, Prompt, RenderedRow, as_ids
from magbatch.spec import JobSpec

# Texts that the model reads: a change here changes answers. Mistral's tokenizers put an empty line between texts that
# follow each other.
GROUP_NOTE = (
    "These are pages {first} to {last} of {total} of one document; the others are asked about on their own. "
    "Answer from these pages alone, and say what they leave open."
)


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
        self._pages = PageChat(self._chat)
        self._combiner = Combiner(self._chat, self._pages)
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
        """The next prompts for a document that is read in page groups; see `Combiner`."""
        return self._combiner(prompt, findings)

    def _whole(self, row: RenderedRow, pages: list[Page]) -> Prompt | None:
        """A prompt that shows these pages; None if it would be too long or have too many images."""
        if not pages or self._images_of(row, pages) > self._max_images:
            return None
        tokens = 0
        for page in pages:  # stops at the limit: a long document would be encoded to its end only to be refused
            tokens += self._pages.tokens(page, most=self._chat.limit + 2 * PAGE_TOKENS - tokens) - PAGE_TOKENS
            if tokens > self._chat.limit + PAGE_TOKENS:
                return None
        token_ids, images = self._pages.encode(row, pages)
        if len(token_ids) > self._chat.limit:
            return None
        group = PageGroup(pages[0].number, pages[-1].number)
        truncated = len(pages) < row.total_pages
        return Prompt(row.row_id, token_ids, images, row.total_pages, [group], truncated=truncated)

    def _page_group(self, row: RenderedRow, pages: list[Page]) -> PageGroup:
        """A prompt of its own about some pages."""
        first, last = pages[0].number, pages[-1].number
        note = GROUP_NOTE.format(first=first, last=last, total=row.total_pages)
        token_ids, images = self._pages.encode(row, pages, note)
        self._chat.check_length(len(token_ids))
        return PageGroup(first, last, token_ids, images)

    def _truncated(self, row: RenderedRow) -> Prompt:
        """A prompt with the first pages that fit; if the first page alone is too long, the beginning of its text."""
        room = self._pages.room(row.messages, row.images, "")
        pages: list[Page] = []
        for page in row.pages:
            if self._images_of(row, [*pages, page]) > self._max_images:
                break
            room -= self._pages.tokens(page, most=room)
            if room < 0:
                break
            pages.append(page)
        while pages:
            prompt = self._whole(row, pages)
            if prompt is not None:
                return prompt
            pages.pop()
        first = row.pages[0]
        room = self._pages.room(row.messages, row.images, "") - self._pages.tokens(replace(first, text=None), most=0)
        if first.text is not None and room >= LEAST_ROOM_TOKENS:
            prompt = self._whole(row, [replace(first, text=self._pages.cut(first.text, room))])
            if prompt is not None:
                return replace(prompt, truncated=True)
        raise self._too_long(row)

    def _split_pages(self, row: RenderedRow) -> Iterator[list[Page]]:
        """Neighbouring pages that fit a prompt together; a text that is too long alone is split."""
        room = self._pages.room(row.messages, row.images, GROUP_NOTE)
        most_images = self._max_images - len(row.images)
        group: list[Page] = []
        left, images, count = room, most_images, 0
        for page in self._fitting(row.pages, room):
            tokens = self._pages.tokens(page, most=room)
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
            if page.text is None or self._pages.tokens(page, most=room) <= room:
                yield page
                continue
            if page.image is not None:
                yield replace(page, text=None)
            for text in split(page.text, room - PAGE_TOKENS, self._chat.count):
                yield Page(page.number, text)

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
