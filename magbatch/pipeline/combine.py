"""Answers about page groups -> the prompts that combine them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from magbatch.errors import ErrorCode, RowError
from magbatch.pipeline.chat import ChatEncoder, before_the_question
from magbatch.pipeline.page_chat import LEAST_ROOM_TOKENS, PageChat
from magbatch.rows import PageGroup, PageGroupAnswer, Prompt

# Texts that the model reads: a change here changes answers.
FINDING = "Pages {first} to {last}:\n{answer}\n\n"
NO_ANSWER = "(no answer about these pages)"
COMBINE = (
    "A document of {total} pages was read in parts, and each part was asked the question below. What they answered:"
    "\n\n{findings}Now answer for {pages}."
)


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


class Combiner:
    """Builds the next prompts of a document that is read in page groups.

    Args:
        chat: Encoder of the job's chats.
        pages: The same encoder, for chats with pages.
    """

    def __init__(self, chat: ChatEncoder, pages: PageChat) -> None:
        self._chat, self._pages = chat, pages

    def __call__(self, prompt: Prompt, findings: Sequence[PageGroupAnswer]) -> list[PageGroup]:
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
        room = self._pages.room(prompt.messages, prompt.images, COMBINE.format(total=0, pages="", findings=""))
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
            note = self._pages.cut(whole, room // 2 - 2)
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
