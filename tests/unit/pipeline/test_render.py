"""A row's documents become text and upright RGB images at the model's size, or a reason why not."""

import base64
import io
import random
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import (
    DATASET_MEAN,
    DATASET_STD,
    ImageConfig,
    ImageEncoder,
    SpecialImageIDs,
)
from numpy.typing import NDArray
from PIL import Image as Pillow

from magbatch.documents.images import ImageGrid, decode
from magbatch.documents.web import MAX_REDIRECTS
from magbatch.errors import ErrorCode, RowError
from magbatch.pipeline.render import Renderer
from magbatch.rows import Image, InputRow, RenderedRow
from magbatch.spec import JobSpec
from magbatch.storage import open_store

GRID = ImageGrid(448, 28)
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
Pixels = NDArray[np.uint8]


def two_halves() -> Pillow.Image:
    """Red on the left, blue on the right, at a size that needs no change: 56 x 28."""
    image = Pillow.new("RGB", (56, 28), RED)
    image.paste(BLUE, (28, 0, 56, 28))
    return image


def encoded(image: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decoded(data: bytes, max_pixels: int = 10**7) -> Pixels:
    return pixels(decode(data, max_pixels, GRID, "the image"))


def pixels(image: Image) -> Pixels:
    assert len(image.rgb) == image.width * image.height * 3
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def near(got: Pixels, wanted: tuple[int, int, int], tolerance: int) -> bool:
    return bool((np.abs(got.astype(int) - np.array(wanted)) <= tolerance).all())


# Image files.


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("WEBP", {"lossless": True}, 0),
        ("GIF", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_common_files_are_decoded(kind: str, options: dict[str, Any], tolerance: int) -> None:
    got = decoded(encoded(two_halves(), kind, **options))
    assert got.shape == (28, 56, 3)
    assert near(got[:, :24], RED, tolerance)
    assert near(got[:, 32:], BLUE, tolerance)


def test_a_cmyk_jpeg_has_its_colours() -> None:
    data = encoded(two_halves().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Pillow.open(io.BytesIO(data)).mode == "CMYK"
    got = decoded(data)
    assert near(got[:, :24], RED, 6)
    assert near(got[:, 32:], BLUE, 6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_grey_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.zeros((28, 28), np.uint16)
    values[:, 7:14], values[:, 14:21], values[:, 21:] = 257 * 10, 257 * 128, 65535
    data = encoded(Pillow.fromarray(values), kind)
    assert Pillow.open(io.BytesIO(data)).mode.startswith("I;16")
    got = decoded(data)
    assert [got[0, column].tolist() for column in (0, 10, 17, 25)] == [[0] * 3, [10] * 3, [128] * 3, [255] * 3]


def test_a_dark_16_bit_picture_stays_dark() -> None:
    """All values fit into 8 bits, but would be bright there."""
    got = decoded(encoded(Pillow.fromarray(np.full((28, 28), 250, np.uint16))))
    assert near(got, (1, 1, 1), 0)


def test_16_bits_of_colour_are_scaled() -> None:
    values = np.zeros((28, 28, 3), np.uint16)
    values[..., 0], values[..., 2] = 65535, 257 * 100  # OpenCV writes blue first
    _, data = cv2.imencode(".png", values)
    assert near(decoded(data.tobytes()), (100, 0, 255), 0)


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0, 255, (0, 255)), (0, 65535, (0, 255)), (257, 257 * 9, (28, 255))]
)
def test_32_bits_of_grey_are_scaled_by_what_they_use(low: int, high: int, shown: tuple[int, int]) -> None:
    values = np.full((28, 28), low, np.int32)
    values[:, 14:] = high
    for kind in (np.int32, np.float32):
        got = decoded(encoded(Pillow.fromarray(values.astype(kind)), "TIFF"))
        assert (got[0, 0, 0], got[0, 20, 0]) == shown


def test_a_float_picture_with_gaps_is_decoded() -> None:
    values = np.full((28, 28), 200, np.float32)
    values[0, 0] = np.nan
    got = decoded(encoded(Pillow.fromarray(values), "TIFF"))
    assert got[0, 0, 0] == 0
    assert got[5, 5, 0] == 200


def test_what_is_transparent_is_white() -> None:
    image = two_halves().convert("RGBA")
    image.putalpha(Pillow.linear_gradient("L").resize((56, 28)).point(lambda value: 0 if value < 128 else 255))
    got = decoded(encoded(image))
    assert near(got[0], WHITE, 0)
    assert near(got[-1, :28], RED, 0)


def test_what_is_half_transparent_is_blended_with_white() -> None:
    image = Pillow.new("RGBA", (28, 28), (255, 0, 0, 128))
    assert near(decoded(encoded(image)), (255, 127, 127), 1)
    grey = Pillow.new("LA", (28, 28), (0, 128))
    assert near(decoded(encoded(grey)), (127, 127, 127), 1)


def test_a_palette_with_a_transparent_colour_is_decoded() -> None:
    image = two_halves().convert("P", palette=Pillow.Palette.ADAPTIVE)
    blue = image.getpixel((50, 5))
    assert isinstance(blue, int)
    for options in ({}, {"transparency": blue}):
        got = decoded(encoded(image, **options))
        assert near(got[:, :28], RED, 0)
        assert near(got[:, 28:], WHITE if options else BLUE, 0)


def test_one_bit_pictures_and_greys_are_decoded() -> None:
    assert near(decoded(encoded(Pillow.new("1", (28, 28), 1))), WHITE, 0)
    assert near(decoded(encoded(Pillow.new("L", (28, 28), 77))), (77, 77, 77), 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_taken_with_a_turned_camera_is_upright(kind: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    got = decoded(encoded(two_halves(), kind, exif=exif, quality=95))
    assert got.shape == (56, 28, 3)
    assert near(got[:24], RED, 30)
    assert near(got[32:], BLUE, 30)


def test_an_animation_is_its_first_picture() -> None:
    frames = [Pillow.new("RGB", (28, 28), colour) for colour in (RED, BLUE, WHITE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert near(decoded(data), RED, 3), kind


def test_one_pixel_is_one_cell() -> None:
    got = decoded(encoded(Pillow.new("RGB", (1, 1), BLUE)))
    assert got.shape == (28, 28, 3)
    assert near(got, BLUE, 0)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def code(act: Callable[[], object]) -> ErrorCode:
    with pytest.raises(RowError) as caught:
        act()
    assert "\n" not in caught.value.message
    return caught.value.code


def test_an_image_over_the_limit_is_refused_before_it_is_decoded() -> None:
    """Decoding this one would fail, or take 10 GB."""
    data = png_header(60_000, 60_000)
    with pytest.raises(RowError) as caught:
        decode(data, 50_000_000, GRID, "column 'scan'")
    assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
    assert caught.value.message == ("column 'scan': 60000 x 60000 pixels, above limits.max_image_pixels = 50000000")
    assert code(lambda: decode(data, 60_000**2, GRID, "x")) is ErrorCode.IMAGE_UNREADABLE


def test_the_pixel_limit_is_inclusive() -> None:
    data = encoded(two_halves())
    assert decoded(data, max_pixels=56 * 28).shape == (28, 56, 3)
    assert code(lambda: decoded(data, max_pixels=56 * 28 - 1)) is ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize("data", [b"", b"no image", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    assert code(lambda: decoded(data)) is ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damaged EXIF blocks
def test_whatever_is_wrong_with_a_file_is_its_rows_error_alone(kind: str) -> None:
    rng = random.Random(kind)
    noise = Pillow.fromarray(np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8))
    data = encoded(noise, kind)
    codes = []
    for _ in range(60):
        harmed = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 6)):
            if harmed:
                harmed[rng.randrange(len(harmed))] = rng.randrange(256)
        try:
            decoded(bytes(harmed))
        except RowError as error:
            codes.append(error.code)
    assert codes
    assert set(codes) <= {ErrorCode.IMAGE_UNREADABLE, ErrorCode.IMAGE_TOO_LARGE}


# Sizes: Mistral's own arithmetic.


def mistral_encoder(config: ImageConfig) -> ImageEncoder:
    return ImageEncoder(config, SpecialImageIDs(img=10, img_break=12, img_end=13))


CONFIGS = [ImageConfig(14, 1540, 2), ImageConfig(14, 448, 2), ImageConfig(16, 1024, 1), ImageConfig(14, 500, 2)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_sizes_give_the_tokens_that_mistrals_own_encoder_gives(config: ImageConfig) -> None:
    rng = random.Random(5)
    grid = ImageGrid(config.max_image_size, config.image_patch_size * config.spatial_merge_size)
    encoder = mistral_encoder(config)
    longest = config.max_image_size
    sizes = [(1, 1), (28, 28), (29, 28), (longest, longest), (longest + 1, 3), (1, 4 * longest), (4 * longest, 1)]
    sizes += [(rng.randrange(1, 2 * longest), rng.randrange(1, 2 * longest)) for _ in range(12)]
    for width, height in sizes:
        tokens = encoder(ImageChunk(image=Pillow.new("L", (width, height)))).tokens
        fitted = grid.fit(width, height)
        columns, rows = fitted[0] // grid.cell, fitted[1] // grid.cell
        assert (columns * grid.cell, rows * grid.cell) == fitted
        assert tokens == [*(([10] * columns + [12]) * rows)[:-1], 13], (width, height)
        # What the engine makes of the image as it is handed over is the same.
        again = encoder(ImageChunk(image=Pillow.new("L", fitted))).tokens
        assert again == tokens, (width, height)


def test_pixels_are_those_that_mistrals_own_encoder_gives() -> None:
    rng = random.Random(6)
    config = ImageConfig(14, 448, 2)
    for number in range(8):
        width, height = rng.randrange(1, 900), rng.randrange(1, 900)
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        wanted = mistral_encoder(config)(ImageChunk(image=Pillow.fromarray(noise))).image.transpose(1, 2, 0)
        wanted = (wanted * np.array(DATASET_STD) + np.array(DATASET_MEAN)) * 255
        got = pixels(decode(encoded(Pillow.fromarray(noise)), 10**7, GRID, "x"))
        assert got.shape == wanted.shape
        # Cubic interpolation shoots beyond what 8 bits hold; within them the difference is the rounding.
        assert np.abs(got - np.clip(wanted, 0, 255)).max() <= 0.51


# Where images come from.


@pytest.fixture
def render(make_spec: Callable[..., JobSpec]) -> Callable[..., RenderedRow]:
    """Render one row that asks about the columns `image` and `more`."""

    def act(
        folder: str = "",
        grid: ImageGrid | None = GRID,
        sections: Any = None,
        fetch_from: tuple[str, ...] = (),
        **values: Any,
    ) -> RenderedRow:
        columns = {"prompt": "question", "images": ["image", "more"]}
        source = {"path": folder or "/in", "columns": columns, "fetch_timeout_s": 5, "fetch_private": True}
        source["fetch_from"] = list(fetch_from)
        spec = make_spec(**({"input": source} | (sections or {})))
        return Renderer(spec, grid)(InputRow("r", {"question": "What?"} | values, folder))

    return act


Render = Callable[..., RenderedRow]
PNG = encoded(two_halves())


def shows_two_halves(row: RenderedRow) -> bool:
    (image,) = row.images
    return near(pixels(image)[:, :28], RED, 0) and near(pixels(image)[:, 28:], BLUE, 0)


def test_a_row_has_its_images_before_its_question(render: Render) -> None:
    row = render(image=PNG, more=PNG)
    assert row.row_id == "r"
    assert len(row.images) == 2
    assert row.messages == [{"role": "user", "content": [{"image": 0}, {"image": 1}, {"text": "What?"}]}]


def test_a_row_without_images_is_text(render: Render) -> None:
    assert render().messages == [{"role": "user", "content": [{"text": "What?"}]}]
    assert render().images == []
    assert render(image=[]).images == []


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        {"bytes": PNG, "path": None},
        {"bytes": PNG, "path": "of/no/use.png"},
        {"bytes": None, "path": "sub/ä b.png"},
        {"path": "sub/ä b.png"},
        [PNG],
        [{"bytes": PNG, "path": None}],
        ["sub/ä b.png"],
        "sub/ä b.png",
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_image_may_be_given_in_many_ways(render: Render, root: str, value: Any) -> None:
    """Relative paths start where the input file lies, on a disk and in object storage."""
    open_store(root).write("in/sub/ä b.png", PNG)
    assert shows_two_halves(render(folder=f"{root}/in", image=value))


def test_an_image_may_lie_elsewhere(render: Render, tmp_path: Path, s3: str) -> None:
    path = tmp_path / "ä b.png"
    path.write_bytes(PNG)
    open_store(s3).write("deep/a.png", PNG)
    for source in (str(path), f"file://{path}", path.as_uri(), f"{s3}/deep/a.png"):
        row = render(folder="/nowhere", image=source, fetch_from=(str(tmp_path), f"{s3}/deep"))
        assert shows_two_halves(row), source


def test_lists_give_their_images_in_order(render: Render) -> None:
    sources = [encoded(Pillow.new("RGB", (28, 28), colour)) for colour in (RED, BLUE, WHITE)]
    row = render(image=sources[:2], more={"bytes": sources[2], "path": None})
    assert [pixels(image)[0, 0].tolist() for image in row.images] == [list(RED), list(BLUE), list(WHITE)]
    assert row.messages[0]["content"] == [{"image": 0}, {"image": 1}, {"image": 2}, {"text": "What?"}]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"no image", ErrorCode.IMAGE_UNREADABLE),
        (7, ErrorCode.IMAGE_UNREADABLE),
        ([[PNG]], ErrorCode.IMAGE_UNREADABLE),
        ("data:image/png;base64,!!!", ErrorCode.IMAGE_UNREADABLE),
        ("data:image/png;base64,Ä", ErrorCode.IMAGE_UNREADABLE),
        ("data:,", ErrorCode.IMAGE_UNREADABLE),
        ([PNG, None], ErrorCode.MISSING_VALUE),
        ({"bytes": None, "path": None}, ErrorCode.MISSING_VALUE),
        ("none.png", ErrorCode.IMAGE_UNFETCHABLE),
        ("", ErrorCode.IMAGE_UNFETCHABLE),
        ("/", ErrorCode.URL_REFUSED),
        ("a\0b", ErrorCode.IMAGE_UNFETCHABLE),
        ("x" * 5000, ErrorCode.IMAGE_UNFETCHABLE),
        ("http://", ErrorCode.IMAGE_UNFETCHABLE),
        ("http://[::1", ErrorCode.IMAGE_UNFETCHABLE),
        ("http://a..b/", ErrorCode.IMAGE_UNFETCHABLE),
        ("ftp://a/b", ErrorCode.IMAGE_UNFETCHABLE),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_image_that_cannot_be_had_says_why(render: Render, tmp_path: Path, value: Any, wanted: ErrorCode) -> None:
    with pytest.raises(RowError) as caught:
        render(folder=str(tmp_path), image=value)
    assert caught.value.code is wanted
    assert caught.value.message.startswith("column 'image'")


@pytest.mark.parametrize("source", ["{s3}/none.png", "s3://no-such-bucket/a.png", "s3://Not a bucket/a.png", "{s3}"])
def test_an_object_that_cannot_be_had_says_why(render: Render, s3: str, source: str) -> None:
    more = (s3, "s3://no-such-bucket", "s3://Not a bucket")
    assert code(lambda: render(image=source.replace("{s3}", s3), fetch_from=more)) is ErrorCode.IMAGE_UNFETCHABLE
    assert code(lambda: render(image="s3://another/a.png", fetch_from=more)) is ErrorCode.URL_REFUSED


def test_too_many_images_are_refused_before_the_first_is_too_many(render: Render) -> None:
    limits = {"limits": {"max_images": 2}}
    assert len(render(sections=limits, image=[PNG, PNG]).images) == 2
    with pytest.raises(RowError) as caught:
        render(sections=limits, image=[PNG, PNG, b"never looked at"])
    assert caught.value.code is ErrorCode.TOO_MANY_IMAGES
    assert "limits.max_images = 2" in caught.value.message


def test_a_file_over_the_limit_of_bytes_is_refused(render: Render, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    exact, less = ({"limits": {"max_image_bytes": len(PNG) - cut}} for cut in (0, 1))
    for value in (PNG, "a.png", "data:;base64," + base64.b64encode(PNG).decode()):
        assert shows_two_halves(render(folder=str(tmp_path), sections=exact, image=value))
        with pytest.raises(RowError) as caught:
            render(folder=str(tmp_path), sections=less, image=value)
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
        assert f"limits.max_image_bytes = {len(PNG) - 1}" in caught.value.message


def test_a_model_without_vision_takes_no_image(render: Render) -> None:
    assert code(lambda: render(grid=None, image=PNG)) is ErrorCode.IMAGES_UNSUPPORTED
    assert render(grid=None).images == []


# Images by URL.


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = 200, {"Content-Type": "image/png"}, PNG
        page, _, query = self.path.removeprefix("/").partition("?")
        if page.isdecimal():
            status, body = int(page), b"no"
        elif page == "loop":
            status, headers, body = 302, {"Location": "/loop"}, b""
        elif page == "hop":
            status, body = 302, b""
            headers = {"Location": f"/hop?{int(query) - 1}" if int(query) else "/ok"}
        elif page == "file":
            status, headers, body = 302, {"Location": "file:///etc/passwd"}, b""
        elif page == "cut":
            headers = {"Content-Length": str(len(PNG) + 10)}
        elif page == "garbled":
            headers = {"Content-Encoding": "gzip"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            if page in ("endless", "drip"):
                while True:
                    self.wfile.write(b"x" if page == "drip" else b"x" * 65536)
                    time.sleep(0.02 if page == "drip" else 0)
            self.wfile.write(body)
        except ConnectionError:
            return  # the reader has had enough

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["/ok", "/ok?a=%20b", "/hop?0", f"/hop?{MAX_REDIRECTS - 1}"])
def test_an_image_is_fetched_by_url(render: Render, site: str, page: str) -> None:
    assert shows_two_halves(render(image=site + page))


@pytest.mark.parametrize(
    "page", ["/404", "/403", "/500", "/loop", f"/hop?{MAX_REDIRECTS}", "/cut", "/garbled", "/file"]
)
def test_an_url_that_gives_no_image_is_unfetchable(render: Render, site: str, page: str) -> None:
    with pytest.raises(RowError) as caught:
        render(image=[PNG, site + page])
    assert caught.value.code is ErrorCode.IMAGE_UNFETCHABLE
    assert caught.value.message.startswith(f"column 'image', image 1: {site}{page}: ")


def test_a_host_that_refuses_is_unfetchable(render: Render) -> None:
    assert code(lambda: render(image="http://127.0.0.1:1/a.png")) is ErrorCode.IMAGE_UNFETCHABLE
    assert code(lambda: render(image="https://127.0.0.1:1/a.png")) is ErrorCode.IMAGE_UNFETCHABLE


def test_an_endless_answer_is_read_up_to_the_limit(render: Render, site: str) -> None:
    limits = {"limits": {"max_image_bytes": 1_000_000}}
    assert code(lambda: render(sections=limits, image=f"{site}/endless")) is ErrorCode.IMAGE_TOO_LARGE


def test_an_answer_that_never_comes_to_an_end_is_given_up(make_spec: Callable[..., JobSpec], site: str) -> None:
    """Every read of it is in time; the whole is not."""
    columns = {"prompt": "question", "images": ["image"]}
    spec = make_spec(input={"path": "/in", "columns": columns, "fetch_timeout_s": 0.2, "fetch_private": True})
    with pytest.raises(RowError) as caught:
        Renderer(spec, GRID)(InputRow("r", {"question": "?", "image": f"{site}/drip"}))
    assert caught.value.code is ErrorCode.IMAGE_UNFETCHABLE
    assert "input.fetch_timeout_s = 0.2" in caught.value.message


# Questions and templates.


@pytest.mark.parametrize("value", [None, ""])
def test_a_row_without_a_question_has_a_missing_value(render: Render, value: Any) -> None:
    with pytest.raises(RowError) as caught:
        render(question=value)
    assert caught.value.code is ErrorCode.MISSING_VALUE
    assert "'question' is " + ("null" if value is None else "empty") in caught.value.message


def test_a_question_of_another_type_is_asked_as_text(render: Render) -> None:
    assert render(question=42).messages[0]["content"] == [{"text": "42"}]
    assert render(question=0).messages[0]["content"] == [{"text": "0"}]


@pytest.fixture
def ask(make_spec: Callable[..., JobSpec]) -> Callable[..., str]:
    """Function that fills a template with a row's values."""

    def act(template: str, prompt: str | None = None, **values: Any) -> str:
        columns = {"prompt": prompt} if prompt else {}
        spec = make_spec(input={"path": "/in", "columns": columns}, prompt={"template": template})
        return Renderer(spec, None).question(values)

    return act


Ask = Callable[..., str]


def test_a_template_is_filled_from_the_rows_columns(ask: Ask) -> None:
    assert ask("{{ q }} — {{ n + 1 }} 数字 ✓\n", q="Wie heißt's? <&>", n=2) == "Wie heißt's? <&> — 3 数字 ✓\n"
    assert ask(
        "{% for m in chat %}{{ m.role }}:{{ m['content'] }};{% endfor %}", chat=[{"role": "a", "content": "b"}]
    ) == ("a:b;")


def test_a_document_is_text_and_no_template(ask: Ask) -> None:
    assert ask("{{ q }}", q="{{ 1 / 0 }} {% raw %}") == "{{ 1 / 0 }} {% raw %}"


def test_a_null_column_is_undefined(ask: Ask) -> None:
    assert ask("{{ q }}{{ more | default('unknown') }}", q="x") == "xunknown"
    assert ask("{% if more is defined %}no{% endif %}", q="x") == ""
    with pytest.raises(RowError) as caught:
        ask("{{ q }}{{ more }}", q="x")
    assert caught.value.code is ErrorCode.TEMPLATE_ERROR
    said = "prompt.template: 'more' is null in this row; write {{ more | default('') }} if it may be null"
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ q.titel }}", "prompt.template: 'titel' is not a field of a value that has 'title', 'body'"),
        ("{{ q['titel'] }}", "prompt.template: 'titel' is not a field of a value that has 'title', 'body'"),
        (
            "{% for one in [q] %}{{ one.x }}{% endfor %}",
            "prompt.template: 'x' is not a field of a value that has 'title'",
        ),
    ],
)
def test_a_field_that_a_value_does_not_have_is_told_with_those_that_it_has(ask: Ask, text: str, said: str) -> None:
    with pytest.raises(RowError) as caught:
        ask(text, q={"title": "a", "body": "b"})
    assert caught.value.code is ErrorCode.TEMPLATE_ERROR
    assert said in caught.value.message


def test_a_template_beside_a_prompt_column_still_needs_the_prompt(ask: Ask) -> None:
    assert ask("{{ q }}!", prompt="q", q="x") == "x!"
    assert code(lambda: ask("Hello", prompt="q")) is ErrorCode.MISSING_VALUE


@pytest.mark.parametrize(
    "template",
    [
        "{{ q.__class__ }}",
        "{{ q.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ q | attr('__class__') }}",
        "{{ rows.append(1) }}",
        "{{ rows.clear() }}",
        "{{ '{0.__class__}'.format(q) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ q.no_such }}",
        "{{ q + 1 }}",
        "{{ 1 / 0 }}",
        "{{ q() }}",
        "{% include 'other' %}",
    ],
)
def test_a_template_reaches_nothing_but_the_row(ask: Ask, template: str) -> None:
    rows = [1]
    assert code(lambda: ask(template, q="x", rows=rows)) is ErrorCode.TEMPLATE_ERROR
    assert rows == [1]


# Chats.


@pytest.fixture
def chat(make_spec: Callable[..., JobSpec]) -> Callable[..., RenderedRow]:
    """Render a row whose `messages` column holds a chat."""

    def act(messages: Any, **values: Any) -> RenderedRow:
        columns = {"messages": "messages", "images": ["image"]}
        spec = make_spec(input={"path": "/in", "columns": columns})
        return Renderer(spec, GRID)(InputRow("r", {"messages": messages} | values))

    return act


Chat = Callable[..., RenderedRow]


def test_a_chat_is_taken_as_it_is(chat: Chat) -> None:
    row = chat(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hï"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": [{"text": "one"}, {"type": "text", "text": "two", "image_url": None}]},
        ]
    )
    assert row.messages == [
        {"role": "system", "content": [{"text": "Be short."}]},
        {"role": "user", "content": [{"text": "Hï"}]},
        {"role": "assistant", "content": [{"text": ""}]},
        {"role": "user", "content": [{"text": "one"}, {"text": "two"}]},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(PNG).decode()}, "text": None},
        {"type": "image_url", "image_url": "data:;base64," + base64.b64encode(PNG).decode()},
        {"type": "image", "image": PNG, "text": None},
        {"type": "image", "image": {"bytes": PNG, "path": None}},
        {"type": "image", "text": "", "image": PNG},
        {"type": "image", "text": "a caption", "image_url": {"url": None}, "image": {"bytes": PNG, "path": None}},
        {"type": "input_image", "text": "", "image_url": "data:;base64," + base64.b64encode(PNG).decode()},
        {"type": None, "text": "", "image": PNG},
    ],
    ids=[
        *(
            "url in a struct",
            "url",
            "bytes",
            "bytes in a struct",
            "empty text",
            "text of another type",
            "input",
            "no type",
        ),
    ],
)
def test_images_stand_where_the_chat_has_them(chat: Chat, part: dict[str, Any]) -> None:
    row = chat([{"role": "user", "content": [{"text": "Look:"}, part, {"text": "What is it?"}]}])
    assert row.messages[0]["content"] == [{"text": "Look:"}, {"image": 0}, {"text": "What is it?"}]
    assert shows_two_halves(row)


def test_a_text_of_a_struct_column_may_have_an_empty_image_beside_it(chat: Chat) -> None:
    parts = [
        {"type": "text", "text": "one", "image": {"bytes": None, "path": ""}, "image_url": {"url": ""}},
        {"type": "text", "text": "two", "image": PNG},
        {"type": None, "text": "", "image": None},
    ]
    row = chat([{"role": "user", "content": parts}])
    assert row.messages[0]["content"] == [{"text": "one"}, {"text": "two"}, {"text": ""}]
    assert not row.images


def test_images_beside_a_chat_go_to_the_last_user_message(chat: Chat) -> None:
    row = chat(
        [
            {"role": "user", "content": [{"text": "first"}, {"image": PNG}]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "second"},
        ],
        image=[PNG, PNG],
    )
    assert row.messages[0]["content"] == [{"text": "first"}, {"image": 0}]
    assert row.messages[2]["content"] == [{"image": 1}, {"image": 2}, {"text": "second"}]
    assert len(row.images) == 3


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hello",
        {"role": "user", "content": "x"},
        ["Hello"],
        [None],
        [{"role": "tool", "content": "x"}],
        [{"role": None, "content": "x"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"text": None, "image_url": None}]}],
        [{"role": "user", "content": [{"image_url": {"url": None}}]}],
        [{"role": "user", "content": [None]}],
        [{"role": "user", "content": [{"type": "video", "text": "", "video": "x"}]}],
        [{"role": "user", "content": [{"type": "image", "text": "a caption", "image": None}]}],
        [{"role": "user", "content": [{"type": "text", "text": None, "image": PNG}]}],
        [{"role": "user", "content": [{"text": "a caption", "image": PNG}]}],
    ],
    ids=lambda value: str(value)[:80],
)
def test_what_is_no_chat_is_refused(chat: Chat, messages: Any) -> None:
    assert code(lambda: chat(messages)) is ErrorCode.INVALID_MESSAGES


def test_the_message_that_is_wrong_is_named(chat: Chat) -> None:
    fine = {"role": "user", "content": "x"}
    for wrong, where in (
        ({"role": "boss", "content": "x"}, "message 1: role"),
        ({"role": "user", "content": None}, "message 1: content is NoneType"),
        ({"role": "user", "content": [{"text": "x"}, {}]}, "message 1, part 1: needs"),
        ({"role": "user", "content": [{"image": b"no image"}]}, "message 1, part 0: not an image"),
    ):
        with pytest.raises(RowError) as caught:
            chat([fine, wrong])
        assert caught.value.message.startswith(where)


def test_a_row_without_a_chat_has_a_missing_value(chat: Chat) -> None:
    assert code(lambda: chat(None)) is ErrorCode.MISSING_VALUE


def test_images_need_a_user_message(chat: Chat) -> None:
    only = [{"role": "system", "content": "x"}]
    assert code(lambda: chat(only, image=PNG)) is ErrorCode.INVALID_MESSAGES
    assert chat(only).images == []
