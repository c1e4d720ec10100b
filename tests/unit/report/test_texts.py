"""Any id of a user becomes a text that a page can show."""

import json
from uuid import UUID

import pyarrow as pa
import pytest

from magbatch.report.texts import as_text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array(["a", None, "größe"]), ["a", None, "größe"]),
        (pa.array([7, None]), ["7", None]),
        (pa.array([b"a\xff"], pa.binary()), ["a\ufffd"]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array([UUID(int=1), None], pa.uuid()), ["00000000-0000-0000-0000-000000000001", None]),
        (pa.array([10**7], pa.int32()).cast(pa.date32()), ["29349-01-26"]),  # Python's dates end with the year 9999
        (pa.array([{"a": 1}, None]), ['{"a": 1}', None]),
        (pa.array([["ö"]]), ['["ö"]']),
    ],
    ids=["text", "number", "bytes", "fixed bytes", "uuid", "late date", "record", "list"],
)
def test_values_of_any_type_are_texts(values: pa.Array, texts: list[str | None]) -> None:
    found = as_text(pa.chunked_array([values]))
    assert found == texts
    json.dumps(found)


def test_text_that_is_not_utf8_is_shown_with_marks() -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    assert as_text(pa.chunked_array([broken])) == ["a\ufffd"]


def test_a_value_without_a_python_equivalent_is_none() -> None:
    nested = pa.array([{"t": 10**12}], pa.struct([("t", pa.timestamp("s"))]))
    assert as_text(pa.chunked_array([nested])) == [None]
