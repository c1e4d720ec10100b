"""Tokens that the requests of one row take, counted as they come: a row that fails has taken some too."""

from collections.abc import Callable, Sequence

from magbatch.engines.base import RequestShape


class Meter:
    """Counts the tokens of one row.

    Args:
        opening: The token that opens thinking; None if the model has none.
        closing: The token that closes it.

    Attributes:
        prompt_tokens: Tokens of the row's prompts: what a request repeats of an earlier one counts once.
        cached_tokens: Those of them that were found in the engine's prefix cache.
        reasoning_tokens: Generated tokens of thinking, over all requests and samples.
        answer_tokens: Generated tokens of answers.
    """

    def __init__(self, opening: int | None = None, closing: int | None = None) -> None:
        self._opening, self._closing = opening, closing
        self.prompt_tokens = self.cached_tokens = self.reasoning_tokens = self.answer_tokens = 0

    def request(self, form: RequestShape) -> Callable[[int, Sequence[int]], None]:
        """A function that counts one request's tokens, given a sample's number and its new tokens."""
        thinking = dict[int, bool]()
        free = form.stop is None and form.schema is None and form.banned_token is None

        def count(sample: int, new: Sequence[int]) -> None:
            if not new:
                return
            if sample not in thinking:
                thinking[sample] = form.stop is not None or (free and new[0] == self._opening)
            thought = len(new) if thinking[sample] else 0
            if thinking[sample] and self._closing in new:
                thought, thinking[sample] = new.index(self._closing) + 1, False
            self.reasoning_tokens += thought
            self.answer_tokens += len(new) - thought

        return count
