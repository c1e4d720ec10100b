"""A chat that shows pages: its token ids, and the tokens that pages and texts take in it."""

from typing import Any

from magbatch.errors import ErrorCode, RowError
from magbatch.pipeline.chat import ChatEncoder, before_the_question
from magbatch.pipeline.splitting import pieces_to_count, split
from magbatch.rows import Image, Page, RenderedRow, TokenIds

# Texts that the model reads: a change here changes answers. Mistral's tokenizers put an empty line between texts that
# follow each other.
CAPTION = "Page {number} of {total}:\n"
BLANK = "(This page shows nothing.)"
PAGE_TOKENS = 16  # tokens of a page's caption and of the numbers in notes about page groups
LEAST_ROOM_TOKENS = 64  # room for pages, or for one finding, below which a prompt would show next to nothing


class PageChat:
    """Encodes chats with pages, and measures pages before a chat is made of them.

    Args:
        chat: Encoder of the job's chats.
    """

    def __init__(self, chat: ChatEncoder) -> None:
        self._chat = chat

    def encode(self, row: RenderedRow, pages: list[Page], note: str = "") -> tuple[TokenIds, list[Image]]:
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

    def cut(self, text: str, room: int) -> str:
        """The beginning of a text: at most `room` tokens."""
        fits = not self._chat.surely_exceed([text], room) and self._chat.count(text) <= room
        return text if fits else next(split(text, room, self._chat.count), "")

    def room(self, messages: list[dict[str, Any]], images: list[Image], note: str) -> int:
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

    def tokens(self, page: Page, most: int) -> int:
        """Tokens that a page takes with its caption, rounded up; counting stops once there are more than `most`."""
        tokens = PAGE_TOKENS
        if page.image is not None:
            tokens += self._chat.tokenizer.image_tokens(page.image)
        for piece in pieces_to_count(_text_of(page)):
            if tokens > most:
                break
            tokens += self._chat.count(piece)
        return tokens


def _text_of(page: Page) -> str:
    """The text that stands for a page, next to its picture."""
    return page.text or (BLANK if page.blank else "")
