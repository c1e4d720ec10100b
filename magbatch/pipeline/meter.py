"""Tokens that the requests of a row take, counted as they arrive: a row that fails has used tokens too."""

from collections.abc import Callable, Sequence

from magbatch.engines.base import RequestShape


class Meter:
    """Counter of a row's tokens: of its prompts, its reasoning and its answers.

    Args:
        opening: Id of the token that opens reasoning; None if the model has none.
        closing: Id of the token that closes reasoning; None if the model has none.

    Attributes:
        prompt_tokens: Tokens of the row's prompts. Tokens that a request repeats from an earlier request count once.
        cached_tokens: Prompt tokens that were found in the engine's prefix cache.
        reasoning_tokens: Generated tokens of reasoning, over all requests and samples.
        answer_tokens: Generated tokens of answers, over all requests and samples.
    """

    def __init__(self, opening: int | None = None, closing: int | None = None) -> None:
        self._opening, self._closing = opening, closing
        self.prompt_tokens = self.cached_tokens = self.reasoning_tokens = self.answer_tokens = 0

    def request(self, shape: RequestShape) -> Callable[[int, Sequence[int]], None]:
        """A counter for one request; call it with a sample's number and that sample's new tokens."""
        reasons = dict[int, bool]()  # sample to whether its reasoning is open
        is_free = shape.stop is None and shape.schema is None and shape.banned_token is None

        def count(sample: int, new: Sequence[int]) -> None:
            if not new:
                return
            if sample not in reasons:
                reasons[sample] = shape.stop is not None or (is_free and new[0] == self._opening)
            reasoning = len(new) if reasons[sample] else 0
            if reasons[sample] and self._closing in new:
                reasoning, reasons[sample] = new.index(self._closing) + 1, False
            self.reasoning_tokens += reasoning
            self.answer_tokens += len(new) - reasoning

        return count
