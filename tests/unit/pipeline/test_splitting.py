"""A split text loses nothing, and each piece fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magbatch.pipeline.splitting import COUNT_CHARACTERS, pieces_to_count, split


def test_a_text_is_split_at_white_space_as_the_example_says() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    assert list(split("one two three four", 9, count)) == ["one two ", "three ", "four"]
    assert counted == ["one two three four", "one two ", "three ", "three four", "three ", "four"]


@pytest.mark.parametrize("text", ["x" * 100, "", "a", "\n" * 50])
def test_a_text_without_words_is_split_too(text: str) -> None:
    pieces = list(split(text, 7, len))
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= 7 for piece in pieces)


@given(st.text("ab \n数", max_size=300), st.integers(1, 40), st.integers(1, 5))
def test_nothing_is_lost_and_pieces_fit_whatever_a_token_is(text: str, room: int, characters: int) -> None:
    """A tokenizer that makes a token of so many characters, and one more for each 数."""

    def count(piece: str) -> int:
        return -(-len(piece) // characters) + piece.count("数")

    pieces = list(split(text, room, count))
    assert "".join(pieces) == text
    assert all(count(piece) <= room or len(piece) == 1 for piece in pieces)


def test_pieces_to_count_make_up_the_text() -> None:
    text = "abc" * COUNT_CHARACTERS
    pieces = list(pieces_to_count(text))
    assert "".join(pieces) == text
    assert {len(piece) for piece in pieces} == {COUNT_CHARACTERS}
