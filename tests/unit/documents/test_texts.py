"""Bytes are text only if they are text in a known encoding, and nothing else."""

import pytest

from magbatch.documents.texts import decoded, plain_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_the_encoding_of_its_mark(encoding: str) -> None:
    assert decoded("Grüße, 数字".encode(encoding)) == "Grüße, 数字"
    assert plain_text("Grüße, 数字".encode(encoding)) == "Grüße, 数字"


@pytest.mark.parametrize("data", [b"\xff", "ä".encode("latin-1"), b"\xff\xfe\x00\xd8", b"\xff\xfea"])
def test_bytes_in_no_known_encoding_are_refused(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(data)
    assert plain_text(data) is None


def test_control_characters_make_a_binary_file() -> None:
    assert plain_text(b"a\tb\r\nc\fd\x1b[0m") == "a\tb\r\nc\fd\x1b[0m"
    for byte in (0, 1, 8, 14, 26, 28, 127):
        assert plain_text(b"a" + bytes([byte])) is None, byte


@pytest.mark.parametrize(
    ("data", "is_image"),
    [
        (b"P1\n# a comment\n3 2\n1 0 1\n0 1 0\n", True),
        (b"P1 2 3 of the plan are done", False),
        (b"P2 3 2 9 1 2 3 4 5 6\n", True),
        (b"P2 1 1 255 17 litres", False),
        (b"P4 16 2\nABCD", True),
        (b"P5 3 2 255\nABCDEF", True),
        (b"P5 3 2 255\nABCDEF and more", False),
        (b"P6 1 1 65535\nABCDEF", True),
        (b"P6 1 1 255\nabcd", False),
    ],
)
def test_an_image_of_printable_characters_is_not_text(data: bytes, is_image: bool) -> None:
    assert (plain_text(data) is None) is is_image
