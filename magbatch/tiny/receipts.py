"""Receipts as images: a random one drawn from a seeded generator, and where each character stands.

The same generator state gives the same pixels on every machine: the only font is the one inside
Pillow, laid out by Pillow's own basic engine.
"""

import random
from dataclasses import dataclass
from functools import cache
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from magbatch.tiny.wording import ITEMS, RECEIPT_FOOTERS, RECEIPT_HEADERS

# One image token spans 28 x 28 pixels. Images are whole tokens large, so they reach the model
# unscaled, and lines are at least one token apart, so a token meets one line at most.
TOKEN_PIXELS = 28
WIDTHS_PX = (168, 196)
FONT_SIZES_PX = (14, 15, 16, 17, 18)
LINE_PITCHES_PX = (28, 29, 30)
MAX_ITEMS = 6
MAX_PRICE_CENTS = 2999


@dataclass(frozen=True)
class Character:
    """One drawn character and its centre, in pixels from the image's top left corner.

    `name` is the item whose name the character is part of, or empty.
    """

    text: str
    x: float
    y: float
    name: str = ""


@dataclass(frozen=True)
class Receipt:
    """What a receipt says, in its own order, and its picture.

    Attributes:
        items: Name (lower case) and price in cents of each item, in the order printed.
        image: The picture, in RGB.
        characters: Every character drawn, the ones of headers and footers too.
    """

    items: tuple[tuple[str, int], ...]
    image: Image.Image
    characters: tuple[Character, ...]

    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = BytesIO()
        self.image.save(buffer, format="PNG")
        return buffer.getvalue()


def price_text(cents: int) -> str:
    """Cents as a price with two decimals."""
    return f"{cents // 100}.{cents % 100:02d}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    # Only a Pillow without FreeType gives a bitmap font here; no wheel of it is built so.
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def draw_receipt(rng: random.Random) -> Receipt:
    """Draws a receipt of 2 to 6 items, in a layout of its own."""
    names = rng.sample(ITEMS, rng.randint(2, MAX_ITEMS))
    items = tuple((name, _price(rng)) for name in names)
    header = rng.choice(RECEIPT_HEADERS) if rng.random() < 0.5 else None
    footer = rng.choice(RECEIPT_FOOTERS) if rng.random() < 0.3 else None
    width = rng.choice(WIDTHS_PX)
    pitch = rng.choice(LINE_PITCHES_PX)
    lines = len(items) + (header is not None) + (footer is not None)
    top = rng.randint(0, 12) + pitch / 2
    needed = top + (lines - 1) * pitch + pitch / 2
    height = -(-int(needed) // TOKEN_PIXELS) * TOKEN_PIXELS
    light = rng.randint(225, 255)
    paper = tuple(min(255, light + rng.randint(-8, 8)) for _ in range(3))
    dark = rng.randint(0, 80)
    ink = tuple(max(0, dark + rng.randint(-20, 20)) for _ in range(3))
    image = Image.new("RGB", (width, height), (paper[0], paper[1], paper[2]))
    page = _Page(ImageDraw.Draw(image), _font(rng.choice(FONT_SIZES_PX)), (ink[0], ink[1], ink[2]))
    left = rng.randint(3, 14)
    right = width - rng.randint(3, 14)
    style = rng.choice((str.lower, str.capitalize, str.upper))
    dotted = rng.random() < 0.2
    y = top
    if header is not None:
        page.write(header, rng.choice((left, (left + right) / 2 - page.width(header) / 2)), y)
        y += pitch
    for name, cents in items:
        end = page.write(style(name), left, y, name)
        price = price_text(cents)
        start = right - page.width(price)
        if dotted:
            page.dots(end + 6, start - 6, y)
        page.write(price, start, y)
        y += pitch
    if footer is not None:
        page.write(footer, left, y)
    return Receipt(items, image, tuple(page.characters))


def _price(rng: random.Random) -> int:
    """Small prices are as frequent as large ones, so that one and two leading digits both occur."""
    return rng.randint(50, 999) if rng.random() < 0.6 else rng.randint(1000, MAX_PRICE_CENTS)


class _Page:
    """Draws lines of text and notes where the characters fall."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        font: ImageFont.FreeTypeFont,
        ink: tuple[int, int, int],
    ) -> None:
        self.characters: list[Character] = []
        self._draw = draw
        self._font = font
        self._ink = ink

    def width(self, text: str) -> float:
        return float(self._font.getlength(text))

    def write(self, text: str, x: float, y: float, name: str = "") -> float:
        """Writes with the middle of the line at `y`; gives the text's right end."""
        x = round(x)
        self._draw.text((x, y), text, font=self._font, fill=self._ink, anchor="lm")
        begin = 0.0
        for index, character in enumerate(text):
            end = self.width(text[: index + 1])
            if character != " ":
                self.characters.append(Character(character, x + (begin + end) / 2, y, name))
            begin = end
        return x + begin

    def dots(self, begin: float, end: float, y: float) -> None:
        x = begin
        while x < end:
            self._draw.point((round(x), round(y + 4)), fill=self._ink)
            x += 5
