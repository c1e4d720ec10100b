"""Row ids, memory and images of the records that steps pass on."""

import pickle
import random

import pytest

from magbatch.errors import ErrorCode
from magbatch.rows import Image, Prompt, ReasoningStatus, Segment, Shard, as_ids


def segment(start: int, rows: int, problem: str | None = None) -> Segment:
    return Segment("/in/a.parquet", "0123456789ab", 10, "tag", start, rows, problem, ErrorCode.FILE_UNREADABLE)


def test_a_row_id_is_the_files_key_and_the_rows_position() -> None:
    assert segment(7, 2).row_ids() == ["0123456789ab-000000007", "0123456789ab-000000008"]


def test_a_file_that_cannot_be_read_is_one_row_by_the_files_key() -> None:
    assert segment(0, 1, "not Parquet").row_ids() == ["0123456789ab"]


def test_row_ids_sort_as_the_rows_stand_in_the_file() -> None:
    ids = [segment(start, 1).row_ids()[0] for start in (0, 9, 10, 99_999_999, 100_000_000)]
    assert ids == sorted(ids)


def test_a_shard_has_the_rows_of_its_segments_in_order() -> None:
    shard = Shard(3, (segment(5, 2), segment(0, 1)))
    assert shard.rows == 3
    assert [row_id[-1] for row_id in shard.row_ids()] == ["5", "6", "0"]


def test_the_closed_list_of_reasoning_status() -> None:
    assert {str(status) for status in ReasoningStatus} == {"complete", "budget", "truncated", "absent", "malformed"}


def test_the_size_of_a_prompt_counts_its_tokens_and_its_pixels() -> None:
    image = Image.of(28, 56, bytes(28 * 56 * 3))
    assert Prompt("r", as_ids([1] * 100)).size_bytes == 4000
    assert Prompt("r", as_ids([1] * 100), [image, image]).size_bytes == 4000 + 2 * 28 * 56 * 3


@pytest.mark.parametrize(
    "rgb", [bytes([255]) * 28 * 56 * 3, random.Random(1).randbytes(28 * 56 * 3)], ids=["paper", "noise"]
)
def test_an_image_is_packed_and_comes_back(rgb: bytes) -> None:
    image = Image.of(28, 56, memoryview(rgb))
    assert image.rgb == rgb
    assert image == Image.of(28, 56, rgb)
    assert pickle.loads(pickle.dumps(image)) == image
    assert len(image.packed) < (len(rgb) / 50 if rgb[0] == rgb[1] else len(rgb) * 1.01)


def test_a_digest_tells_pictures_apart() -> None:
    rgb = bytes(28 * 56 * 3)
    assert Image.of(28, 56, rgb).digest == Image.of(28, 56, rgb).digest
    assert Image.of(28, 56, rgb).digest != Image.of(56, 28, rgb).digest, "the same bytes in another shape"
    assert Image.of(28, 56, rgb).digest != Image.of(28, 56, rgb[:-1] + b"x").digest
