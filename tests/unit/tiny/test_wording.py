"""Every word of the tasks is a piece of the vocabulary, once."""

from magbatch.tiny.wording import GOODS, LANGUAGES, SYSTEM_PROMPT, pieces


def test_pieces_are_distinct_and_keep_their_order() -> None:
    found = pieces()
    assert len(set(found)) == len(found)
    assert found == pieces()
    assert found[0] == SYSTEM_PROMPT.split()[0]


def test_items_have_a_piece_with_a_leading_blank() -> None:
    assert {f" {item}" for item in GOODS} <= set(pieces())


def test_no_placeholder_is_a_piece() -> None:
    assert not [piece for piece in pieces() if "{" in piece or "}" in piece]


def test_each_language_names_every_field_in_its_sentence() -> None:
    for language in LANGUAGES.values():
        for field in language.labels:
            assert f"{{{field}}}" in language.sentence
            assert language.names[field]
        assert all("{name}" in question for question in language.questions)
