"""Image files in processes that may die: each ends within its time and memory, and the next one is decoded."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.picture_files import Tag, drawn, empty_png, encoded, icns, ico, many_scans, tiff_of, tiled_tiff

from magbatch.documents.decoder import Decoders, memory_mb
from magbatch.documents.images import ImageGrid
from magbatch.errors import ErrorCode, RowError

GRID = ImageGrid(448, 28)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    made = Decoders(1, GRID, 2_000_000, 10_000_000, 60.0)
    yield made
    made.close()


def code(decoders: Decoders, data: bytes) -> ErrorCode:
    with pytest.raises(RowError) as caught:
        decoders(data, "column 'scan'")
    assert caught.value.message.startswith("column 'scan': ")
    return caught.value.code


def is_well(decoders: Decoders) -> bool:
    image = decoders(encoded(drawn()), "x")
    return (image.width, image.height, len(image.rgb)) == (56, 28, 56 * 28 * 3)


def test_an_image_is_decoded_as_in_the_callers_own_process(decoders: Decoders) -> None:
    assert is_well(decoders)


@pytest.mark.parametrize("data", [ico(empty_png(20_000)), icns(empty_png(20_000)), tiled_tiff(20_000)])
def test_pictures_within_files_are_refused_by_their_size(decoders: Decoders, data: bytes) -> None:
    assert code(decoders, data) is ErrorCode.IMAGE_TOO_LARGE
    assert is_well(decoders)


def test_a_jpeg_of_thousands_of_scans_is_late_alone() -> None:
    """Decoding would take a minute; the next image takes a hundredth of a second."""
    data = many_scans(1400, 30_000)
    assert len(data) < 10_000_000
    hasty = Decoders(1, GRID, 2_000_000, 10_000_000, 1.0)
    try:
        assert code(hasty, data) is ErrorCode.IMAGE_TIMEOUT
        assert is_well(hasty)
    finally:
        hasty.close()


def test_an_image_that_takes_more_memory_than_its_pixels_may_is_refused(decoders: Decoders) -> None:
    """A hundred tags share one block of 9 MB: each would be read."""
    block: list[Tag] = [(60_000 + number, 1, bytes(9_000_000 if number == 99 else 5)) for number in range(100)]
    data = bytearray(tiff_of(np.zeros((28, 28), np.uint8), tags=block))
    entries = range(10, 10 + 12 * int.from_bytes(data[8:10], "little"), 12)
    (last,) = (data[at + 4 : at + 12] for at in entries if data[at : at + 2] == (60_099).to_bytes(2, "little"))
    for at in entries:
        if int.from_bytes(data[at : at + 2], "little") >= 60_000:
            data[at + 4 : at + 12] = last
    assert code(decoders, bytes(data)) is ErrorCode.IMAGE_TOO_LARGE
    assert is_well(decoders)


def test_a_reading_task_is_bounded_in_memory() -> None:
    assert memory_mb(50_000_000, 100_000_000) < 2048
