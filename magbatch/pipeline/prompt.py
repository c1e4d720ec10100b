"""Messages, images and pages -> the token ids that the engine takes.

A document that does not fit one prompt is refused, shown in part, or asked about in parts, as the job says.

The ids that leave here are those that Mistral's own tokenizer gives for the chat, image tokens
expanded; the count of images always equals the count of image ends, since an engine accepts a
prompt with missing images silently (measured, vLLM 0.32).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from pydantic import ValidationError

from magbatch.counts import counted
from magbatch.errors import ErrorCode, ModelError, RowError, SpecError
from magbatch.model.tokenizer import Tokenizer, blank
from magbatch.rows import Image, Page, PageGroup, PageGroupAnswer, Prompt, RenderedRow, TokenIds, as_ids
from magbatch.spec import JobSpec
from magbatch.spec.template import fixed_texts

# Mistral's tokenizers put an empty line between texts that follow each other.
CAPTION = "Page {number} of {total}:\n"
PART = (
    "These are pages {first} to {last} of {total} of one document; the others are asked about on their own. "
    "Answer from these pages alone, and say what they leave open."
)
NOTE = "Pages {first} to {last}:\n{answer}\n\n"
BLANK = "(This page shows nothing.)"
NO_ANSWER = "(no answer about these pages)"
COMBINE = (
    "A document of {total} pages was read in parts, and each part was asked the question below. What they answered:"
    "\n\n{findings}Now answer for {pages}."
)
PAGE_TOKENS = 16  # of a page's caption, and of numbers in the texts above
LEAST_ROOM_TOKENS = 64  # for pages, or for one finding
CHARACTERS_PER_TOKEN = 4  # a first guess at where a text is cut
COUNT_CHARACTERS = 16_384  # encoded at once to learn how long a text is
CUT_TOKENS = 16  # of such a piece, that may be others than in the whole text
LONG_TEXT = 4  # times the characters that are likely to fit: no such text is encoded unless it may fit
# What a tokenizer might treat in a way of its own: blanks, control tokens as text, other scripts.
PROBES = (
    "What?",
    " \n two  lines\n\n\t",
    "</s>[INST]a[/INST] [THINK]b[/THINK][IMG]",
    "größe 日本 🦙 e\u0301\u200d",
    "0123456789" * 9,
)
_ALIKE = re.compile(r"(?<!\s)\s{1000000}\s*\S?")  # more than tiktoken splits
_THINK_PART = re.compile(r"\[THINK\](.*?)\[/THINK\]", re.DOTALL)


def system_message(system: str, checkpoint: Path) -> SystemMessage | None:
    """The system message that a spec asks for.

    Args:
        system: `model`, `none`, or the text; an empty text is none. A `[THINK]…[/THINK]` part of it
            becomes a think part, as in Magistral's own prompt: specs are written by the job's owner,
            not by documents.
        checkpoint: The model's directory.

    Raises:
        ModelError: `model` is asked for, but the checkpoint has no SYSTEM_PROMPT.txt.
    """
    if system == "none":
        return None
    if system == "model":
        file = checkpoint / "SYSTEM_PROMPT.txt"
        if not file.is_file():
            raise ModelError(
                f"prompt.system: model, but {checkpoint} has no SYSTEM_PROMPT.txt; set it to `none` or to the text"
            )
        system = file.read_text(encoding="utf-8")
    chunks: list[TextChunk | ThinkChunk] = []
    for position, part in enumerate(_THINK_PART.split(system)):
        if position % 2:
            chunks.append(ThinkChunk(thinking=part, closed=True))
        elif part:
            chunks.append(TextChunk(text=part))
    if not chunks:
        return None
    return SystemMessage(content=system if chunks == [TextChunk(text=system)] else chunks)


class Prompter:
    """Builds prompts by a job's spec.

    Args:
        spec: The job.
        checkpoint: The model's directory.
        tokenizer: The model's tokenizer.
        max_model_len: Tokens that the engine can hold for one row, answer included.

    Raises:
        ModelError: The model's files do not give the system prompt or the effort that the spec asks for.
        SpecError: No row has room beside what every prompt has.
    """

    def __init__(self, spec: JobSpec, checkpoint: Path, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._system = system_message(spec.prompt.system, checkpoint)
        self._effort: dict[str, Any] = {}
        if spec.reasoning.effort is not None and tokenizer.takes_effort:
            self._effort = {"reasoning_effort": spec.reasoning.effort}
        elif spec.reasoning.effort == "high":
            raise ModelError(
                f"reasoning.effort: high, but this model's tokenizer (v{tokenizer.version}) takes no effort setting; "
                "leave it out: it thinks as it was trained to"
            )
        elif spec.reasoning.effort == "none" and tokenizer.think_open is None:
            raise ModelError("reasoning.effort: none, but this model's tokenizer has no [THINK]: leave it out")
        self._frame = self._learn_frame()
        self._overflow = spec.input.document.overflow
        self._max_images, self._max_pages = spec.limits.max_images, spec.limits.max_pages
        self._limit = min(spec.limits.max_prompt_tokens, max_model_len - 1)
        self._limit_name = (
            "limits.max_prompt_tokens"
            if self._limit == spec.limits.max_prompt_tokens
            else "max_model_len, less one for the answer"
        )
        if not spec.input.columns.messages:  # a chat may have a system prompt of its own
            self._check_room(spec, max_model_len)

    def __call__(self, row: RenderedRow) -> Prompt:
        """Encode one row; a document that does not fit as the spec says.

        Raises:
            RowError: `invalid_messages`, `prompt_too_long` or `too_many_images`.
        """
        if not row.pages:
            token_ids, images = self._encode(row.messages, row.images)
            self._check(len(token_ids))
            return Prompt(row.row_id, token_ids, images)
        whole = self._whole(row, row.pages)
        if whole is not None:
            return whole
        if self._overflow == "truncate":
            return self._truncated(row)
        if self._overflow == "map_reduce":
            parts = [self._part(row, pages) for pages in self._groups(row)]
            left_out = len(row.pages) < row.total_pages
            return Prompt(row.row_id, as_ids(), row.images, row.total_pages, parts, row.messages, truncated=left_out)
        raise self._too_long(row)

    def combine(self, prompt: Prompt, findings: Sequence[PageGroupAnswer]) -> list[PageGroup]:
        """What is asked next about a document that is read in parts.

        Args:
            prompt: The row.
            findings: The answers to its parts, in the order of the pages.

        Returns:
            One prompt over all findings; or several, each over neighbouring ones, whose answers are the findings to
            combine then: always fewer than these.

        Raises:
            RowError: `prompt_too_long`: not even two findings fit beside the question.
        """
        room = self._room(prompt.messages, prompt.images, COMBINE.format(total=0, pages="", findings=""))
        if room < 2 * LEAST_ROOM_TOKENS:
            raise RowError(ErrorCode.PROMPT_TOO_LONG, "the question leaves no room to combine what the parts answered")
        groups: list[list[str]] = [[]]
        spans: list[tuple[int, int]] = []
        cut = [False]
        left = room
        for finding in findings:
            note = NOTE.format(first=finding.first_page, last=finding.last_page, answer=finding.answer or NO_ANSWER)
            whole, note = note, self._cut(note, room // 2 - 2)
            size = self._size(note) + 2  # where two texts meet, a token may fall in two
            if groups[-1] and size > left:
                groups.append([])
                cut.append(False)
                left = room
            if not groups[-1]:
                spans.append((finding.first_page, finding.last_page))
            groups[-1].append(note)
            spans[-1] = (spans[-1][0], finding.last_page)
            cut[-1] |= len(note) < len(whole)
            left -= size
        parts = []
        for notes, (first, last), truncated in zip(groups, spans, cut, strict=True):
            pages = "the whole document" if len(groups) == 1 else f"pages {first} to {last}"
            text = COMBINE.format(total=prompt.total_pages, findings="".join(notes), pages=pages)
            token_ids, images = self._encode(_before_the_question(prompt.messages, [{"text": text}]), prompt.images)
            self._check(len(token_ids))
            parts.append(PageGroup(first, last, token_ids, images, truncated))
        return parts

    def _encode(self, messages: list[dict[str, Any]], images: list[Image]) -> tuple[TokenIds, list[Image]]:
        """The prompt of a chat, and its images in the order in which they stand in it.

        Raises:
            RowError: `invalid_messages`; `prompt_too_long`, for a text of many times the length that may fit.
        """
        texts = [part["text"] for message in messages for part in message["content"] if "text" in part]
        if self._exceed(texts, self._limit):
            for alike in filter(None, map(_ALIKE.search, texts)):
                self._size(alike[0])  # raises if it cannot be split: that is what has to be mended first
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has more than {self._limit} tokens ({self._limit_name}): "
                f"its text has {sum(map(len, texts)):,} characters",
            )
        text = _lone_text(messages) if self._frame is not None and not images else None
        if self._frame is not None and text is not None:
            head, tail = self._frame
            return head + self._tokenizer.encode_text(text) + tail, []
        return self._encode_chat(messages, images)

    def _learn_frame(self) -> tuple[TokenIds, TokenIds] | None:
        """The ids around a lone question, for most rows are one: mistral_common takes twice as long for the chat as
        for its text. None where this tokenizer does not simply put the text's own ids between the same others."""
        frame: tuple[TokenIds, TokenIds] | None = None
        for probe in PROBES:
            try:
                whole, _ = self._encode_chat([{"role": "user", "content": [{"text": probe}]}], [])
            except RowError:
                return None
            body = self._tokenizer.encode_text(probe)
            if frame is None:
                places = [at for at in range(len(whole)) if whole[at : at + len(body)] == body]
                if not places:
                    return None
                frame = whole[: places[-1]], whole[places[-1] + len(body) :]
            if whole != frame[0] + body + frame[1]:
                return None
        return frame

    def _check_room(self, spec: JobSpec, max_model_len: int) -> None:
        """Raise SpecError where what every prompt has leaves no room for any row."""
        try:
            whole, _ = self._encode_chat([{"role": "user", "content": [{"text": PROBES[0]}]}], [])
        except RowError:  # of what no row is like
            return
        chat = len(whole) - len(self._tokenizer.encode_text(PROBES[0]))
        texts = fixed_texts(spec.prompt.template) if spec.prompt.template is not None else []
        # The last token of a text may be one with the first of what a row puts behind it.
        fixed = sum(max(0, self._size(text) - 1) for text in texts)
        if chat + fixed <= self._limit:
            return
        parts = f"the system prompt and the chat around a question take {chat} tokens"
        parts += f", and the fixed text of prompt.template {fixed}" if fixed else ""
        if self._limit == spec.limits.max_prompt_tokens:
            raise SpecError(f"limits.max_prompt_tokens: {self._limit} is too few for any row: {parts}")
        raise SpecError(
            f"model.engine_args.max_model_len: {max_model_len} is too few for any row: {parts}, and an answer 1 or more"
        )

    def _encode_chat(self, messages: list[dict[str, Any]], images: list[Image]) -> tuple[TokenIds, list[Image]]:
        """As `_encode`, by Mistral's own tokenizer in any case."""
        try:
            chat: list[Any] = [_message(message, images) for message in messages]
            if self._system is not None and not any(isinstance(message, SystemMessage) for message in chat):
                chat.insert(0, self._system)
            token_ids = as_ids(self._tokenizer.encode(ChatCompletionRequest(messages=chat, **self._effort)))
        except (MistralCommonException, ValidationError) as error:
            raise RowError(ErrorCode.INVALID_MESSAGES, f"the tokenizer refuses this chat: {error}") from error
        shown = [images[part["image"]] for message in messages for part in message["content"] if "image" in part]
        ends = token_ids.count(self._tokenizer.image_end) if self._tokenizer.image_end is not None else 0
        if not ends == len(shown) == len(images):
            raise RowError(
                ErrorCode.INVALID_MESSAGES,
                f"{counted(len(images), 'image')}, but {counted(ends, 'place')} for images in the prompt",
            )
        return token_ids, shown

    def _check(self, tokens: int) -> None:
        if tokens > self._limit:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG, f"the prompt has {tokens} tokens, above {self._limit} ({self._limit_name})"
            )

    # A document's pages.

    def _whole(self, row: RenderedRow, pages: list[Page]) -> Prompt | None:
        """One prompt with these pages; None where it would be too long, or have too many images."""
        if not pages or len(row.images) + sum(page.image is not None for page in pages) > self._max_images:
            return None
        tokens = 0
        for page in pages:  # a long document is not encoded whole to learn that it is too long
            tokens += self._page_tokens(page, most=self._limit + 2 * PAGE_TOKENS - tokens) - PAGE_TOKENS
            if tokens > self._limit + PAGE_TOKENS:
                return None
        token_ids, images = self._asked(row, pages)
        if len(token_ids) > self._limit:
            return None
        parts, left_out = [PageGroup(pages[0].number, pages[-1].number)], len(pages) < row.total_pages
        return Prompt(row.row_id, token_ids, images, row.total_pages, parts, truncated=left_out)

    def _asked(self, row: RenderedRow, pages: list[Page], note: str = "") -> tuple[TokenIds, list[Image]]:
        images, shown = list(row.images), list[dict[str, Any]]()
        for page in pages:
            caption = CAPTION.format(number=page.number, total=row.total_pages) if row.total_pages > 1 else ""
            if page.image is not None:
                images.append(page.image)
                shown += [{"text": caption}] if caption else []
                shown.append({"image": len(images) - 1})
                caption = ""
            text = _words(page)
            if caption or text:
                shown.append({"text": f"{caption}{text}"})
        if note:
            shown.append({"text": note})
        return self._encode(_before_the_question(row.messages, shown), images)

    def _part(self, row: RenderedRow, pages: list[Page]) -> PageGroup:
        first, last = pages[0].number, pages[-1].number
        note = PART.format(first=first, last=last, total=row.total_pages)
        token_ids, images = self._asked(row, pages, note)
        self._check(len(token_ids))
        return PageGroup(first, last, token_ids, images)

    def _truncated(self, row: RenderedRow) -> Prompt:
        """The first pages that fit; of a page that alone does not, the beginning of its text."""
        room = self._room(row.messages, row.images, "")
        pages: list[Page] = []
        for page in row.pages:
            if len(row.images) + sum(one.image is not None for one in [*pages, page]) > self._max_images:
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

    def _groups(self, row: RenderedRow) -> Iterator[list[Page]]:
        """Neighbouring pages that fit a prompt together; a text that alone does not is cut into pieces."""
        room = self._room(row.messages, row.images, PART)
        most_images = self._max_images - len(row.images)
        group: list[Page] = []
        left, images, count = room, most_images, 0
        for page in self._pieces(row.pages, room):
            tokens = self._page_tokens(page, most=room)
            if tokens > room or (page.image is not None and most_images < 1):
                raise self._too_long(row)
            if tokens > left or (page.image is not None and not images):
                yield group
                count += 1
                if count >= self._max_pages:
                    raise RowError(
                        ErrorCode.TOO_MANY_PAGES,
                        f"the document makes more parts than limits.max_pages = {self._max_pages}",
                    )
                group, left, images = [], room, most_images
            group.append(page)
            left -= tokens
            images -= page.image is not None
        yield group

    def _pieces(self, pages: list[Page], room: int) -> Iterator[Page]:
        for page in pages:
            if page.text is None or self._page_tokens(page, most=room) <= room:
                yield page
                continue
            if page.image is not None:
                yield replace(page, text=None)
            for text in self._split(page.text, room - PAGE_TOKENS):
                yield Page(page.number, text)

    def _split(self, text: str, room: int) -> Iterator[str]:
        """A text in pieces of at most `room` tokens, cut at white space where there is some."""
        at, size, grown = 0, room * CHARACTERS_PER_TOKEN, False
        while at < len(text):
            piece = text[at : at + size]
            if at + size < len(text):
                end = max(piece.rfind("\n"), piece.rfind(" ")) + 1
                piece = piece[:end] if end > len(piece) // 2 else piece
            tokens = self._size(piece)
            if tokens > room and len(piece) > 1:
                size = max(1, min(int(len(piece) * room / tokens * 0.95), len(piece) - 1))
                continue
            if tokens < room * 0.8 and at + len(piece) < len(text) and not grown:
                size, grown = int(size * room / tokens * 0.95), True
                continue
            yield piece
            at, grown = at + len(piece), False

    def _cut(self, text: str, room: int) -> str:
        """The beginning of a text, of at most `room` tokens."""
        fits = not self._exceed([text], room) and self._size(text) <= room
        return text if fits else next(self._split(text, room), "")

    def _exceed(self, texts: list[str], most: int) -> bool:
        """Whether texts surely have more than `most` tokens, in the memory of a short one; False tells nothing.

        A text is 10 to 35 times as large while it is encoded, so a very long one is counted piece by piece, as far as
        that takes. Where a piece ends, a few tokens may be others than in the whole.
        """
        if sum(map(len, texts)) <= LONG_TEXT * CHARACTERS_PER_TOKEN * most:
            return False
        for text in texts:
            for at in range(0, len(text), COUNT_CHARACTERS):
                most -= max(0, self._size(text[at : at + COUNT_CHARACTERS]) - CUT_TOKENS)
                if most < 0:
                    return True
        return False

    def _room(self, messages: list[dict[str, Any]], images: list[Image], note: str) -> int:
        """Tokens that a prompt has left for pages, beside the question and a note.

        Raises:
            RowError: `prompt_too_long`: next to none.
        """
        asked, _ = self._encode(_before_the_question(messages, [{"text": note}] if note else []), images)
        room = self._limit - len(asked) - PAGE_TOKENS
        if room < LEAST_ROOM_TOKENS:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the question has {len(asked)} tokens: {self._limit} ({self._limit_name}) leave no room for pages",
            )
        return room

    def _page_tokens(self, page: Page, most: int) -> int:
        """Tokens that a page takes, or more than `most` of them, with its caption; never too few."""
        tokens = PAGE_TOKENS
        if page.image is not None:
            tokens += self._tokenizer.image_tokens(page.image)
        text = _words(page)
        for at in range(0, len(text), COUNT_CHARACTERS):
            if tokens > most:
                break
            tokens += self._size(text[at : at + COUNT_CHARACTERS])
        return tokens

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode_text(text))

    def _too_long(self, row: RenderedRow) -> RowError:
        images = len(row.images) + sum(page.image is not None for page in row.pages)
        if images > self._max_images:
            return RowError(
                ErrorCode.TOO_MANY_IMAGES, f"{images} images and pages, above limits.max_images = {self._max_images}"
            )
        return RowError(
            ErrorCode.PROMPT_TOO_LONG,
            f"the document's {counted(row.total_pages, 'page')} and the question have more than {self._limit} tokens "
            f"({self._limit_name}); input.document.overflow says what else can be done",
        )


def _words(page: Page) -> str:
    """The text that stands for a page, beside its picture."""
    return page.text or (BLANK if page.blank else "")


def _lone_text(messages: list[dict[str, Any]]) -> str | None:
    """The text of a chat that is one question in one piece."""
    if len(messages) != 1 or messages[0]["role"] != "user" or len(messages[0]["content"]) != 1:
        return None
    text = messages[0]["content"][0].get("text")
    return text if isinstance(text, str) and text else None


def _before_the_question(messages: list[dict[str, Any]], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat with parts at the beginning of its last user message."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    asked = messages[last] | {"content": [*parts, *messages[last]["content"]]}
    return [*messages[:last], asked, *messages[last + 1 :]]


def _message(message: dict[str, Any], images: list[Image]) -> SystemMessage | UserMessage | AssistantMessage:
    parts = message["content"]
    if message["role"] == "user":
        chunks = [_chunk(part, images) for part in parts]
        return UserMessage(content=chunks)
    if any("image" in part for part in parts):
        raise RowError(ErrorCode.INVALID_MESSAGES, f"a {message['role']} message cannot hold an image")
    text = "".join(part["text"] for part in parts)
    return SystemMessage(content=text) if message["role"] == "system" else AssistantMessage(content=text)


def _chunk(part: dict[str, Any], images: list[Image]) -> TextChunk | ImageChunk:
    if "text" in part:
        return TextChunk(text=part["text"])
    return ImageChunk(image=blank(images[part["image"]]))
