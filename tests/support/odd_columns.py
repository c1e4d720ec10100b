"""Columns of many Arrow types, with values that Arrow and Parquet can hold and Python cannot."""

from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

# The integers that each type is stored as.
STORED: dict[pa.DataType, pa.DataType] = {
    **{pa.timestamp(unit, tz=zone): pa.int64() for unit in ("us", "ns") for zone in (None, "UTC", "Nowhere/Land")},
    pa.timestamp("ms", tz="+05:30"): pa.int64(),
    pa.date32(): pa.int32(),
    pa.time32("ms"): pa.int32(),
    pa.time64("us"): pa.int64(),
    pa.duration("us"): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.int16(),
    pa.float64(): pa.int64(),
}
DECIMALS = [pa.decimal128(38, 2), pa.decimal128(38, 38), pa.decimal256(76, 0)]
SHAPES = ["plain", "dictionary", "list", "struct", "map"]


def number_of(kind: pa.DataType) -> st.SearchStrategy[int]:
    """Integers of a type, often extreme."""
    low, high = -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
    near = st.sampled_from([low, high, 0, -1, 10**4, low // 1000, high // 1000])
    return near | st.integers(low, high)


@st.composite
def odd_values(draw: Any) -> pa.Array:
    """A few values of one type that is not nested."""
    kind = draw(st.sampled_from([*STORED, *DECIMALS]))
    if kind in STORED:
        cells = draw(st.lists(number_of(STORED[kind]) | st.none(), min_size=1, max_size=5))
        return pa.array(cells, STORED[kind]).view(kind)
    wide = 10**kind.precision - 1
    cells = draw(st.lists(st.integers(-wide, wide), min_size=1, max_size=5))
    data = b"".join(cell.to_bytes(kind.byte_width, "little", signed=True) for cell in cells)
    return pa.Array.from_buffers(kind, len(cells), [None, pa.py_buffer(data)])


def filled(values: pa.Array, rows: int, shape: str = "plain") -> pa.Array:
    """A column of so many rows in which the values come again and again, each within a shape."""
    turns = pa.array([row % len(values) for row in range(rows)], pa.int32())
    if shape == "dictionary":
        return pa.DictionaryArray.from_arrays(turns, values)
    values = values.take(turns)
    if shape == "list":
        return pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), values)
    if shape == "struct":
        return pa.StructArray.from_arrays([values], ["x"])
    if shape == "map":
        return pa.MapArray.from_arrays(pa.array(range(rows + 1), pa.int32()), pa.array(["x"] * rows), values)
    return values
