"""The model's tokenizer: chats to ids, ids to text, and the ids of the control tokens.

Control tokens are found by name, never by number. Text that merely looks like a control token is encoded as plain text.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.image import ImageEncoder, ImageEncoding
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from PIL import Image as Pillow

from magbatch.errors import ErrorCode, ModelError, RowError
from magbatch.rows import Image, TokenIds, as_ids

EFFORT_VERSION = 15
MAX_ORDINARY_CHARACTERS = 100_000  # a tenth of the length at which tiktoken 0.14 panics: a million blanks in a row
TIKTOKEN_FAILED = "Regex error while tokenizing"
UNSPLIT = "a text repeats one character too often for the tokenizer, such as a million blanks: shorten it"


class _CountingImageEncoder(ImageEncoder):
    """Encoder that expands image tokens without touching pixels: only the engine needs the pixels."""

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        if not isinstance(content, ImageChunk):
            raise TypeError("images reach the tokenizer decoded, never as URLs")
        columns, rows = self._image_to_num_tokens(content.image)
        tokens = ([self.special_ids.img] * columns + [self.special_ids.img_break]) * rows
        tokens[-1] = self.special_ids.img_end
        return ImageEncoding(tokens=tokens, image=np.empty((0, 0, 0), dtype=np.float32))


def picture(width: int, height: int, rgb: bytes) -> Pillow.Image:
    """An image as a Pillow image, over the same bytes.

    Args:
        width: Width (pixels).
        height: Height (pixels).
        rgb: Bytes (height x width x 3), rows from the top.
    """
    return Pillow.frombuffer("RGB", (width, height), rgb, "raw", "RGB", 0, 1)


def blank(image: Image) -> Pillow.Image:
    """A blank image of the same size. The tokenizer reads only the size, so the pixels need no copy."""
    return Pillow.new("L", (image.width, image.height), None)


class Tokenizer:
    """A Mistral tokenizer.

    Args:
        path: Directory of the checkpoint.

    Attributes:
        think_open: Id of `[THINK]`; None if the model has no such token.
        think_close: Id of `[/THINK]`.
        turn_open: Id of `[INST]`, which starts a turn of the user.
        turn_close: Id of `[/INST]`.
        end: Id of the end of a sequence.
        version: Version of the tokenizer, such as 13 for Magistral 1.2.
        image_end: Id that ends the tokens of an image; None for a model without vision.

    Raises:
        ModelError: tekken.json is not a tokenizer that mistral_common can read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._chat = MistralTokenizer.from_file(str(path / "tekken.json"))
        except (MistralCommonException, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ModelError(f"{path / 'tekken.json'}: not a tokenizer that can be read: {error}") from error
        instruct = self._chat.instruct_tokenizer
        self._text = instruct.tokenizer
        self.think_open = self._special("[THINK]")
        self.think_close = self._special("[/THINK]")
        self.turn_open, self.turn_close = self._special("[INST]"), self._special("[/INST]")
        self.end = int(self._text.eos_id)
        self.version = int(self._text.version.value.removeprefix("v").partition("m")[0].partition("-")[0])
        encoder = instruct.image_encoder
        self._images = encoder
        self.image_end = encoder.special_ids.img_end if encoder is not None else None
        if encoder is not None:
            instruct.image_encoder = _CountingImageEncoder(encoder.image_config, encoder.special_ids)

    def _special(self, name: str) -> int | None:
        try:
            return int(self._text.get_special_token(name))
        except (ValueError, KeyError, MistralCommonException):
            return None

    def encode(self, request: Any) -> list[int]:
        """Token ids of a chat, with images expanded to their tokens.

        Args:
            request: A `ChatCompletionRequest`.

        Raises:
            MistralCommonException: The request is not a chat for this model.
            ValidationError: The request is not a chat for this model.
            RowError: A text repeats one character too often; see `encode_text`.
        """
        try:
            return list(self._chat.encode_chat_completion(request).tokens)
        except ValueError as error:
            if TIKTOKEN_FAILED not in str(error):
                raise
            raise RowError(ErrorCode.INVALID_MESSAGES, f"{UNSPLIT}: {error}") from error

    @property
    def takes_effort(self) -> bool:
        """Whether a chat request has a setting for reasoning effort; earlier tokenizers express it by prompt tokens."""
        return self.version >= EFFORT_VERSION

    def image_tokens(self, image: Image) -> int:
        """Tokens of an image in a prompt.

        Raises:
            ModelError: The model takes no images.
        """
        if self._images is None:
            raise ModelError("this model's tokenizer takes no images")
        columns, rows = self._images._image_to_num_tokens(blank(image))
        return rows * (columns + 1)

    def encode_text(self, text: str) -> TokenIds:
        """Token ids of plain text; text that looks like a control token stays text.

        Raises:
            RowError: A text repeats one character so often that tiktoken cannot split it, about a million times.
        """
        # mistral_common would search for tiktoken's control tokens, of which there are none, and count its own control
        # tokens again for each token. That takes three times as long for the same ids.
        assert isinstance(self._text, Tekkenizer), "only a Tekkenizer has a tekken.json"
        model = self._text._model
        try:
            # `encode_ordinary` panics if it cannot split a text, and `except Exception` does not catch panics.
            long = len(text) > MAX_ORDINARY_CHARACTERS
            ids = np.array(model.encode(text, disallowed_special=()) if long else model.encode_ordinary(text), np.int32)
        except ValueError as error:
            raise RowError(ErrorCode.INVALID_MESSAGES, f"{UNSPLIT}: {error}") from error
        return as_ids((ids + np.int32(self._text.num_special_tokens)).tobytes())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens."""
        least = self._text.num_special_tokens
        last = len(token_ids)
        while last and token_ids[last - 1] < least:  # an answer ends with a control token
            last -= 1
        ids = token_ids[:last]
        if not ids or min(ids) < least:
            return self._text.decode(list(ids), special_token_policy=SpecialTokenPolicy.IGNORE)
        # The usual text has no control tokens. mistral_common would look for them one by one, in ten times the time.
        pieces = self._pieces
        return b"".join([pieces[token] for token in ids]).decode(errors="replace")

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        """Bytes of each token id, in order."""
        assert isinstance(self._text, Tekkenizer), "only a Tekkenizer has a tekken.json"
        return [self._text.id_to_byte_piece(token) for token in range(self._text.n_words)]

    def show(self, token_ids: Sequence[int]) -> str:
        """Text of token ids for a person, with control tokens by their names."""
        return self._text.decode(list(token_ids), special_token_policy=SpecialTokenPolicy.KEEP)
