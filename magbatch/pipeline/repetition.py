"""Samples that only repeat themselves are noticed, so that they can be ended."""

from collections.abc import Sequence

import numpy as np

LEAST_REPEATS = 4  # occurrences of a pattern that count as repetition


def repeats_itself(tokens: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> bool:
    """Whether tokens are one pattern over and over, at least `LEAST_REPEATS` times.

    Example: the pattern [7, 8] occurs four times in [7, 8, 7, 8, 7, 8, 7, 8].
    A pattern of 8 tokens / 4 = 2 at most fits four times, and the last token, 8, also stands 2 places before the end.

    Args:
        tokens: int64 array (n,): token ids.
    """
    # A pattern of some length puts the last token that many places before the end too. So the last token alone rules
    # out most lengths, and only a few need a comparison of all tokens.
    lengths = 1 + np.flatnonzero(tokens[-2 : -2 - len(tokens) // LEAST_REPEATS : -1] == tokens[-1])
    return any(bool((tokens[length:] == tokens[:-length]).all()) for length in lengths)


class RepetitionGuard:
    """Notices a sample that only repeats itself.

    vLLM has such a check, but runs it inside the engine for every token of every row. This one runs outside, for every
    chunk of tokens. Only exact repetition counts.

    Args:
        tokens: Tokens of pure repetition that end a sample; None for no limit.
    """

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._tails: dict[int, list[int]] = {}

    def __call__(self, sample: int, new: Sequence[int]) -> bool:
        """Whether a sample may go on; see `OnTokens`.

        Args:
            sample: Number of the sample, from 0.
            new: New tokens of the sample.
        """
        if self._tokens is None:
            return True
        tail = self._tails.setdefault(sample, [])
        tail += new
        del tail[: -self._tokens]
        return len(tail) < self._tokens or not repeats_itself(np.array(tail))
