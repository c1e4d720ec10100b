"""A long text in pieces that each fit a number of tokens."""

from collections.abc import Callable, Iterator

CHARACTERS_PER_TOKEN = 4  # a first guess, corrected by counting the tokens of each piece
COUNT_CHARACTERS = 16_384  # characters encoded at once: bounds the memory of counting a long text


def pieces_to_count(text: str) -> Iterator[str]:
    """A text in pieces of a fixed size, cut anywhere: good enough to count its tokens, not to show them."""
    for at in range(0, len(text), COUNT_CHARACTERS):
        yield text[at : at + COUNT_CHARACTERS]


def split(text: str, room: int, count: Callable[[str], int]) -> Iterator[str]:
    """Split a text into pieces of at most `room` tokens, at white space if there is some in the second half.

    A piece starts as a guess of `CHARACTERS_PER_TOKEN * room` characters. While it has too many tokens, it shrinks in
    proportion, 5% below the estimate. If it fills less than 80% of the room, it grows once.

    Example, for a tokenizer that makes one token of each character:

    >>> list(split("one two three four", 9, len))
    ['one two ', 'three ', 'four']

    1. The guess is 36 characters, the whole text: 18 tokens. So 18 * 9 / 18 * 0.95 = 8 characters come next.
    2. "one two " ends at a blank and has 8 tokens, which is over 80% of 9: it is a piece.
    3. The next 8 characters, "three fo", are cut to "three ". It has 6 tokens, so it grows once, to 11 characters.
    4. "three four" has 10 tokens: back to 8 characters and "three ", which is a piece now. "four" is the rest.

    Args:
        text: Text of any length.
        room: Tokens that a piece may have, 1 or more.
        count: Number of tokens of a text.

    Yields:
        Pieces that make up the text when they are joined. A single character may have more tokens than `room`.
    """
    at, size, has_grown = 0, room * CHARACTERS_PER_TOKEN, False
    while at < len(text):
        piece = text[at : at + size]
        if at + size < len(text):
            end = max(piece.rfind("\n"), piece.rfind(" ")) + 1
            piece = piece[:end] if end > len(piece) // 2 else piece
        tokens = count(piece)
        if tokens > room and len(piece) > 1:
            size = max(1, min(int(len(piece) * room / tokens * 0.95), len(piece) - 1))
            continue
        if tokens < room * 0.8 and at + len(piece) < len(text) and not has_grown:
            size, has_grown = int(size * room / tokens * 0.95), True
            continue
        yield piece
        at, has_grown = at + len(piece), False
