"""Random images of receipts, with the position of each character, drawn from a seeded generator.

They look like a till's print: every character has the same width, and lines have the same height. Receipts differ in
type size, position of the print, paper, ink, order of name and price, leaders, case, headings and blank lines.

The same generator state gives the same pixels on every machine: the only font is the one inside Pillow, laid out by
Pillow's own basic engine.
"""

import random
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magbatch.tiny.wording import GOODS, RECEIPT_FOOTERS, RECEIPT_HEADERS

# An image token spans 28 x 28 pixels and shows two characters of a line. The sides of an image are multiples of it, so
# that images reach the model unscaled.
TOKEN_PIXELS = 28
CHARACTER_PIXELS = 14
WIDTHS_CHARACTERS = (14, 16, 18)
FONT_SIZES_PX = (15, 16, 17, 18, 19)
# Bounds for the shift of the whole print on the paper.
SHIFTS_X_PX = (-2, 2)
SHIFTS_Y_PX = (-4, 4)
MAX_ITEMS = 6
MAX_PRICE_CENTS = 2999


@dataclass(frozen=True)
class Character:
    """A drawn character.

    Attributes:
        text: Text of the character, one code point.
        x: Centre, in pixels from the left edge of the image.
        y: Centre, in pixels from the top edge of the image.
        name: Item in whose name the character stands, or empty.
    """

    text: str
    x: float
    y: float
    name: str = ""


@dataclass(frozen=True)
class Receipt:
    """A receipt: its content and its picture.

    Attributes:
        items: Name (lower case) and price in cents of each item, in printed order.
        image: Picture, in RGB.
        characters: All drawn characters, also of headers and footers.
    """

    items: tuple[tuple[str, int], ...]
    image: Image.Image
    characters: tuple[Character, ...]

    def png(self) -> bytes:
        """Return the picture as a PNG file with a palette: lossless, at a third of the size of RGB."""
        pixels = np.asarray(self.image)
        colors, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
        # The shades between ink and paper are fewer than the 256 colours of a palette.
        paletted = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8), mode="P")
        paletted.putpalette(colors.tobytes())
        buffer = BytesIO()
        paletted.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def price_text(cents: int) -> str:
    """Format cents as a price with two decimals."""
    return f"{cents // 100}.{cents % 100:02d}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    # Only a Pillow without FreeType gives a bitmap font here; all of its wheels have FreeType.
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def draw_receipt(rng: random.Random) -> Receipt:
    """Draw a receipt of 2 to 6 items in a random layout."""
    names = rng.sample(GOODS, rng.randint(2, MAX_ITEMS))
    items = tuple((name, _price(rng)) for name in names)
    width = rng.choice(WIDTHS_CHARACTERS)
    margin = rng.randint(0, (width - max(len(_plain_line(*item)) for item in items)) // 2)
    lines = _item_lines(rng, items, width - 2 * margin)
    lines = [_Line(margin + line.column, line.text, line.name) for line in lines]
    if rng.random() < 0.5:
        lines.insert(0, _heading(rng, RECEIPT_HEADERS, width))
        if rng.random() < 0.3:
            lines.insert(1, _Line(0, ""))
    if rng.random() < 0.3:
        lines.append(_heading(rng, RECEIPT_FOOTERS, width))
    if rng.random() < 0.5:
        lines.append(_Line(0, ""))
    lines[:0] = [_Line(0, "")] * rng.choice((0, 0, 1, 2))
    light = rng.randint(225, 255)
    paper = [min(255, light + rng.randint(-8, 8)) for _ in range(3)]
    dark = rng.randint(0, 80)
    ink = [max(0, dark + rng.randint(-20, 20)) for _ in range(3)]
    image = Image.new("RGB", (width * CHARACTER_PIXELS, len(lines) * TOKEN_PIXELS), (paper[0], paper[1], paper[2]))
    draw, font = ImageDraw.Draw(image), _font(rng.choice(FONT_SIZES_PX))
    shift_x, shift_y = rng.randint(*SHIFTS_X_PX), rng.randint(*SHIFTS_Y_PX)
    characters = []
    for row, line in enumerate(lines):
        for column, text in enumerate(line.text, start=line.column):
            if text == " ":
                continue
            x = column * CHARACTER_PIXELS + CHARACTER_PIXELS // 2 + shift_x
            y = row * TOKEN_PIXELS + TOKEN_PIXELS // 2 + shift_y
            draw.text((x, y), text, font=font, fill=(ink[0], ink[1], ink[2]), anchor="mm")
            characters.append(Character(text, x, y, line.name if text.isalpha() else ""))
    return Receipt(items, image, tuple(characters))


@dataclass(frozen=True)
class _Line:
    """A printed line.

    Attributes:
        column: Position of the first character, in characters.
        text: Printed text.
        name: Item that the line names, or empty.
    """

    column: int
    text: str
    name: str = ""


def _price(rng: random.Random) -> int:
    """Draw a price in cents; prices below 10.00 are as frequent as larger ones, so that both lengths are learnt."""
    return rng.randint(50, 999) if rng.random() < 0.6 else rng.randint(1000, MAX_PRICE_CENTS)


def _plain_line(name: str, cents: int) -> str:
    return f"{name} {price_text(cents)}"


def _item_lines(rng: random.Random, items: tuple[tuple[str, int], ...], width: int) -> list[_Line]:
    style = rng.choice((str.lower, str.capitalize, str.upper))
    price_first = rng.random() < 0.2
    leader = "." if rng.random() < 0.2 else " "
    lines = []
    for name, cents in items:
        price = price_text(cents)
        first, last = (price, style(name)) if price_first else (style(name), price)
        between = width - len(first) - len(last)
        # A blank separates the leader from the text at each end.
        filling = leader * (between - 2) if between > 2 else ""
        lines.append(_Line(0, f"{first}{filling.center(between)}{last}", name))
    return lines


def _heading(rng: random.Random, texts: tuple[str, ...], width: int) -> _Line:
    text = rng.choice([text for text in texts if len(text) <= width])
    return _Line(rng.choice((0, (width - len(text)) // 2)), text)
