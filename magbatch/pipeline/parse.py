"""Generated token ids -> reasoning, answer, and how the reasoning ended.

The split is made on token ids, never on text. So a model that quotes "[/THINK]" in its reasoning does not end it, and a
document cannot forge an answer.

There is one rule: the answer is the text after the last think block, if that block is closed. Everything before is
reasoning. Nothing that was generated is lost, and reasoning that was not closed is never shown as an answer.
"""

from collections.abc import Sequence

from magbatch.model.tokenizer import Tokenizer
from magbatch.rows import Answer, Completion, ReasoningStatus

BLOCK_SEPARATOR = "\n\n"


class Parser:
    """Splitter of completions of one model.

    Args:
        tokenizer: Mistral's tokenizer of the model, for its think tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def reasoning_marks(self) -> tuple[int | None, int | None]:
        """Ids of the tokens that open and close reasoning; None for a token that the model lacks."""
        return self._tokenizer.think_open, self._tokenizer.think_close

    def __call__(self, completion: Completion) -> Answer:
        """Split a completion.

        Returns:
            The answer. `reasoning_tokens` counts up to and including the last closing token, `answer_tokens` the rest
            with the end-of-sequence token. Their sum is the number of generated tokens.
        """
        ids = completion.token_ids
        blocks: list[list[int]] = [[]]
        is_open = completion.opened
        well_formed = True
        last_close = -1
        marked = completion.opened
        for position, token in enumerate(ids):
            if token == self._tokenizer.think_open:
                well_formed &= not is_open
                is_open, marked = True, True
                blocks.append([])
            elif token == self._tokenizer.think_close:
                well_formed &= is_open
                is_open, marked = False, True
                last_close = position
                blocks.append([])
            else:
                blocks[-1].append(token)

        if not marked:
            return self._answer(completion, None, ReasoningStatus.ABSENT, ids, 0)
        if is_open:
            # A model that stops in the middle of its reasoning broke the form; a model that ran out of tokens did not.
            status = ReasoningStatus.MALFORMED if completion.finish_reason == "stop" else ReasoningStatus.TRUNCATED
            return self._answer(completion, self._text(blocks), completion.status or status, (), len(ids))
        status = (completion.status or ReasoningStatus.COMPLETE) if well_formed else ReasoningStatus.MALFORMED
        forced = completion.forced
        return self._answer(completion, self._text(blocks[:-1]), status, blocks[-1], last_close + 1 - forced, forced)

    def _text(self, blocks: list[list[int]]) -> str | None:
        texts = (self._tokenizer.decode(block).strip() for block in blocks if block)
        return BLOCK_SEPARATOR.join(text for text in texts if text) or None

    def _answer(
        self,
        completion: Completion,
        reasoning: str | None,
        status: ReasoningStatus,
        answer_ids: Sequence[int],
        reasoning_tokens: int,
        forced: int = 0,
    ) -> Answer:
        return Answer(
            reasoning=reasoning,
            status=status,
            answer=self._tokenizer.decode(answer_ids).strip() or None,
            finish_reason=completion.finish_reason,
            reasoning_tokens=reasoning_tokens,
            answer_tokens=len(completion.token_ids) - forced - reasoning_tokens,
        )
