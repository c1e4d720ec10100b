"""The names for annotations are Arrow's own classes."""

import pyarrow as pa

from magbatch import arrow_types


def test_a_name_is_the_class_of_its_values() -> None:
    assert isinstance(pa.array([1]), arrow_types.Array)
    assert isinstance(pa.chunked_array([[1]]), arrow_types.ChunkedArray)
    assert isinstance(pa.array([[1]]), arrow_types.ListArray)
    assert isinstance(pa.array(["a"]).dictionary_encode(), arrow_types.DictionaryArray)
    assert isinstance(pa.scalar(1), arrow_types.Scalar)
    assert isinstance(pa.field("a", pa.int64()), arrow_types.Field)
    assert all(isinstance(kind, arrow_types.ListType) for kind in (pa.list_(pa.int8()), pa.large_list(pa.int8())))
