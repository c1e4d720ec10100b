"""Samples that only repeat themselves are noticed, so that they can be ended."""

from collections.abc import Sequence

import numpy as np

LEAST_REPEATS = 4  # occurrences of a pattern that count as repetition


def repeats_itself(tokens: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> bool:
    """Whether tokens are one pattern, repeated at least `LEAST_REPEATS` times.

    Example: [7, 8, 7, 8, 7, 8, 7, 8] repeats the pattern [7, 8] four times.
    A pattern that fits four times into 8 tokens has 1 or 2 tokens. The last token, 8, stands again 2 positions earlier,
    so a pattern of 2 is possible. Comparing all tokens with those 2 positions earlier confirms it.

    Args:
        tokens: int64 array (n,): token ids.
    """
    # If a pattern has length n, the last token stands again n positions earlier. So the last token alone rules out most
    # lengths, and only a few need a comparison of all tokens.
    lengths = 1 + np.flatnonzero(tokens[-2 : -2 - len(tokens) // LEAST_REPEATS : -1] == tokens[-1])
    return any(bool((tokens[length:] == tokens[:-length]).all()) for length in lengths)


class RepetitionGuard:
    """Detector of samples that only repeat themselves.

    vLLM has such a check, but runs it inside the engine for every token of every row. This one runs outside, for every
    chunk of tokens. Only exact repetition counts.

    Args:
        tokens: Tokens of pure repetition that end a sample; None for no limit.
    """

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._tails: dict[int, list[int]] = {}

    def __call__(self, sample: int, new: Sequence[int]) -> bool:
        """Whether a sample may continue; see `OnTokens`.

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
