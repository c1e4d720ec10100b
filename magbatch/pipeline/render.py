"""Input row -> messages and decoded images.

A row comes out with every image decoded, upright, in RGB and at the size in which the model sees
it, or it raises `RowError`. Nothing of a row is decoded before its size was checked.

Runs in the read step's CPU tasks, never in the engine's process.
"""

import base64
import functools
import io
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import cv2
import httpx
import jinja2
import numpy as np
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from magbatch.errors import ErrorCode, RowError, SpecError, StorageError
from magbatch.rows import Image, InputRow, RenderedRow
from magbatch.spec import JobSpec, is_remote
from magbatch.storage.inputs import read_at_most
from magbatch.storage.s3 import NoBucketError, RefusedError

MAX_REDIRECTS = 5

# render() checks the size itself, from the header, against the job's own limit.
Pillow.MAX_IMAGE_PIXELS = None


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)


def template_columns(template: str) -> set[str]:
    """The names that a template uses: all must be input columns.

    Raises:
        SpecError: The template does not parse.
    """
    try:
        return set(find_undeclared_variables(_environment().parse(template)))
    except jinja2.TemplateSyntaxError as error:
        raise SpecError(f"prompt.template: line {error.lineno}: {error.message}") from error


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """The sizes that a model's vision encoder takes.

    Attributes:
        longest_side: Pixels; larger images are scaled down to it.
        cell: Pixels of the side of one image token; both sides become multiples of it.
    """

    longest_side: int
    cell: int

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The size in which the model sees an image (Mistral's rule, as in mistral_common's ImageEncoder)."""
        ratio = max(width / self.longest_side, height / self.longest_side)
        if ratio > 1:
            width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        return ((width - 1) // self.cell + 1) * self.cell, ((height - 1) // self.cell + 1) * self.cell


class Renderer:
    """Renders rows by a job's spec.

    Args:
        spec: The job.
        grid: The model's image sizes; None for a model without vision.
    """

    def __init__(self, spec: JobSpec, grid: ImageGrid | None) -> None:
        self._columns = spec.input.columns
        self._input_path = spec.input.path
        self._limits = spec.limits
        self._timeout_s = spec.input.fetch_timeout_s
        self._template = _environment().from_string(spec.prompt.template) if spec.prompt.template is not None else None
        self._grid = grid

    def __call__(self, row: InputRow) -> RenderedRow:
        """Render one row.

        Raises:
            RowError: What is wrong with it.
            StorageError: The storage of an image that it names is away.
        """
        images: list[Image] = []

        def add(source: Any, origin: str) -> dict[str, int]:
            if len(images) == self._limits.max_images:
                raise RowError(
                    ErrorCode.TOO_MANY_IMAGES, f"more than limits.max_images = {self._limits.max_images} images"
                )
            images.append(self._image(source, row.folder, origin))
            return {"image": len(images) - 1}

        attached = [source for name in self._columns.images for source in _images_in(row.values, name)]
        if self._columns.messages:
            messages = _messages(_required(row.values, self._columns.messages), add)
            users = [message for message in messages if message["role"] == "user"]
            if attached and not users:
                raise RowError(ErrorCode.INVALID_MESSAGES, "the row has images but no user message to hold them")
            if attached:
                users[-1]["content"] = [add(*source) for source in attached] + users[-1]["content"]
        else:
            text = {"text": self.question(row.values)}
            messages = [{"role": "user", "content": [*(add(*source) for source in attached), text]}]
        return RenderedRow(row.row_id, messages, images)

    def question(self, values: dict[str, Any]) -> str:
        """The text that is asked; raises RowError as rendering does."""
        if self._template is None:
            return str(_required(values, self._columns.prompt or ""))
        if self._columns.prompt:
            _required(values, self._columns.prompt)
        try:
            return self._template.render(values)
        except Exception as error:  # a template is a program: whatever it raises is this row's error
            raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {type(error).__name__}: {error}") from error

    def _image(self, source: Any, folder: str, origin: str) -> Image:
        if self._grid is None:
            raise RowError(ErrorCode.IMAGES_UNSUPPORTED, "the row has an image, but the model has no vision encoder")
        data = self._load(source, folder, origin)
        if len(data) > self._limits.max_image_bytes:
            raise RowError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"{origin}: more than limits.max_image_bytes = {self._limits.max_image_bytes}",
            )
        return decode(data, self._limits.max_image_pixels, self._grid, origin)

    def _load(self, source: Any, folder: str, origin: str) -> bytes:
        if isinstance(source, bytes):
            return source
        if not isinstance(source, str):
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE, f"{origin}: an image is bytes, a path or a URL, not {type(source).__name__}"
            )
        if source.startswith("data:"):
            try:
                return base64.b64decode(source.partition(",")[2], validate=True)
            except ValueError as error:
                raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{origin}: the data URL is not base64: {error}") from error
        try:
            return self._reference(source, folder)
        except FileNotFoundError as error:
            raise RowError(ErrorCode.IMAGE_UNFETCHABLE, f"{origin}: {source}: no such file or object") from error
        except StorageError as error:
            if error.passing and not self._is_of_the_row(error, source):
                raise
            raise RowError(ErrorCode.IMAGE_UNFETCHABLE, f"{origin}: {source}: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # A ValueError: a host that IDNA refuses, a path with a null byte.
            reason = str(error) or type(error).__name__
            raise RowError(ErrorCode.IMAGE_UNFETCHABLE, f"{origin}: {source}: {reason}") from error

    def _is_of_the_row(self, error: StorageError, source: str) -> bool:
        """Whether a place was refused that only this row names: a store that is away is no fault of its rows."""
        if isinstance(error, NoBucketError):
            return source.split("/")[:3] != self._input_path.split("/")[:3]  # the input's own bucket is there, mostly
        return isinstance(error, RefusedError)

    def _reference(self, source: str, folder: str) -> bytes:
        limit = self._limits.max_image_bytes
        if source.startswith(("http://", "https://")):
            return _fetch(source, limit, self._timeout_s)
        path = unquote(source.removeprefix("file://")) if source.startswith("file://") else source
        if not is_remote(path) and not os.path.isabs(path):
            path = f"{folder}/{path}"
        return read_at_most(path, limit)


def _required(values: Mapping[str, Any], name: str) -> Any:
    value = values.get(name)
    if value is None or value == "":
        raise RowError(
            ErrorCode.MISSING_VALUE, f"column {name!r} is {'null' if value is None else 'empty'} in this row"
        )
    return value


def _images_in(values: dict[str, Any], name: str) -> list[tuple[Any, str]]:
    """The image sources in a column: none where it is null."""
    value = values.get(name)
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    found = []
    for position, item in enumerate(items):
        origin = f"column {name!r}" + (f", image {position}" if isinstance(value, list) else "")
        if isinstance(item, dict):  # Hugging Face's image feature
            item = item.get("bytes") or item.get("path")
        if item is None:
            raise RowError(ErrorCode.MISSING_VALUE, f"{origin} is null in this row")
        found.append((item, origin))
    return found


def _messages(value: Any, add: Callable[[Any, str], dict[str, int]]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RowError(ErrorCode.INVALID_MESSAGES, "messages must be a list of {role, content} with at least one entry")
    messages = []
    for position, message in enumerate(value):
        where = f"message {position}"
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise RowError(ErrorCode.INVALID_MESSAGES, f"{where}: role must be system, user or assistant")
        content = message.get("content")
        if isinstance(content, str):
            parts: list[dict[str, Any]] = [{"text": content}]
        elif isinstance(content, list):
            parts = [_part(part, f"{where}, part {index}", add) for index, part in enumerate(content)]
        else:
            raise RowError(
                ErrorCode.INVALID_MESSAGES, f"{where}: content is {type(content).__name__}, not text or parts"
            )
        messages.append({"role": message["role"], "content": parts})
    return messages


def _part(part: Any, where: str, add: Callable[[Any, str], dict[str, int]]) -> dict[str, Any]:
    if isinstance(part, dict):
        # A struct column gives every part all fields, most of them null.
        if isinstance(part.get("text"), str):
            return {"text": part["text"]}
        source = part.get("image_url") or part.get("image")
        if isinstance(source, dict):
            source = source.get("url") or source.get("bytes") or source.get("path")
        if source is not None:
            return dict(add(source, where))
    raise RowError(ErrorCode.INVALID_MESSAGES, f"{where}: needs `text`, `image_url` or `image`")


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # 30 ms of CPU: once a process, not once an image


def _fetch(url: str, limit: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    with (
        httpx.Client(follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=timeout_s, verify=_tls()) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > limit:
                break
            if time.monotonic() > deadline:  # httpx counts each read for itself
                raise httpx.ReadTimeout(f"not fetched within input.fetch_timeout_s = {timeout_s:g}")
        return bytes(data)


def decode(data: bytes, max_pixels: int, grid: ImageGrid, origin: str) -> Image:
    """Decode one image file into what the model sees.

    Args:
        data: PNG, JPEG, WebP or whatever else Pillow reads; CMYK, palette and 16-bit included.
        max_pixels: Checked from the header, before anything is decoded.
        grid: The sizes that the model takes.
        origin: Where the image came from, for messages.

    Raises:
        RowError: `image_unreadable` or `image_too_large`.
    """
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise RowError(
                    ErrorCode.IMAGE_TOO_LARGE,
                    f"{origin}: {width} x {height} pixels, above limits.max_image_pixels = {max_pixels}",
                )
            opened.load()
            upright = ImageOps.exif_transpose(opened)
        pixels = np.asarray(_to_rgb(upright), dtype=np.float32)
    except RowError:
        raise
    except Exception as error:  # Pillow's decoders have no one class for what can be wrong with a file
        raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{origin}: not an image that can be decoded: {error}") from error
    size = grid.fit(pixels.shape[1], pixels.shape[0])
    if size != (pixels.shape[1], pixels.shape[0]):
        # The interpolation that Mistral's own preprocessing uses: vLLM then finds nothing left to resize.
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    rgb: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return Image(size[0], size[1], rgb.tobytes())


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a channel: convert("RGB") would clip, not scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        # 32 bits say nothing about the range that is used, 16 bits do.
        wide = image.mode.startswith("I;16") or values.max(initial=0.0) > 255
        scaled = np.clip(values / 257 if wide else values, 0, 255)
        return Pillow.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        white = Pillow.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")
