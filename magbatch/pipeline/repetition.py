"""A sample that only repeats itself is noticed, and ended."""

from collections.abc import Sequence

import numpy as np

LEAST_REPEATS = 4  # of a pattern, before it counts as repetition


def repeats_itself(tokens: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> bool:
    """Whether tokens are one pattern over and over, at least `LEAST_REPEATS` times."""
    # The last token stands a pattern's length before the end too: few lengths are left to compare whole.
    lengths = 1 + np.flatnonzero(tokens[-2 : -2 - len(tokens) // LEAST_REPEATS : -1] == tokens[-1])
    return any(bool((tokens[length:] == tokens[:-length]).all()) for length in lengths)


class RepetitionGuard:
    """Notices a sample that only repeats itself.

    vLLM has such a check, made for every token of every row inside the engine; here it is made for
    every chunk of tokens, outside. It looks at exact repetition only.

    Args:
        tokens: How many tokens of pure repetition are enough; None never is.
    """

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._tails: dict[int, list[int]] = {}

    def __call__(self, sample: int, new: Sequence[int]) -> bool:
        """See `OnTokens`: False for a sample that has repeated itself for long enough."""
        if self._tokens is None:
            return True
        tail = self._tails.setdefault(sample, [])
        tail += new
        del tail[: -self._tokens]
        return len(tail) < self._tokens or not repeats_itself(np.array(tail))
