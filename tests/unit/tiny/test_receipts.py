"""Receipts have the same pixels everywhere, on whole image tokens, and their PNG files lose none."""

import hashlib
import random
from io import BytesIO

from PIL import Image

from magbatch.tiny.receipts import CHARACTER_PIXELS, TOKEN_PIXELS, draw_receipt, price_text
from magbatch.tiny.tasks import work

PIXELS = "ee50f50e65076cc0b795f742a1deaf097c03329b453df628c00488bf04f1e768"


def test_a_picture_has_the_same_pixels_everywhere():
    receipt = work("heldout", 5, 0, "receipt").receipt
    assert receipt is not None
    assert hashlib.sha256(receipt.image.tobytes()).hexdigest() == PIXELS


def test_images_are_whole_image_tokens_large():
    for index in range(100):
        receipt = work("train", 2, index, "receipt").receipt
        assert receipt.image.width % 28 == receipt.image.height % 28 == 0
        assert max(receipt.image.size) <= 448
        assert all(0 <= c.x < receipt.image.width and 0 <= c.y < receipt.image.height for c in receipt.characters)


def test_a_file_holds_the_very_pixels_of_the_picture():
    for index in range(50):
        receipt = work("heldout", 5, index, "receipt").receipt
        assert Image.open(BytesIO(receipt.png())).convert("RGB").tobytes() == receipt.image.tobytes()


def test_each_character_lies_in_its_own_cell() -> None:
    receipt = draw_receipt(random.Random(3))
    cells = [(int(one.x) // CHARACTER_PIXELS, int(one.y) // TOKEN_PIXELS) for one in receipt.characters]
    assert len(set(cells)) == len(cells)
    assert {one.name for one in receipt.characters if one.name} == {name for name, _ in receipt.items}


def test_a_price_has_two_decimals() -> None:
    assert [price_text(cents) for cents in (5, 50, 999, 1000)] == ["0.05", "0.50", "9.99", "10.00"]
