"""Names for Arrow's generic classes in annotations.

The classes have type parameters only in their stubs: `pa.Array[Any]` fails at run time. These names are the classes
themselves at run time, and classes with values of any type for the type checker.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

if TYPE_CHECKING:
    Array: TypeAlias = pa.Array[Any]
    ChunkedArray: TypeAlias = pa.ChunkedArray[Any]
    ListArray: TypeAlias = pa.ListArray[Any]
    DictionaryArray: TypeAlias = pa.DictionaryArray[Any, Any]
    Scalar: TypeAlias = pa.Scalar[Any]
    Field: TypeAlias = pa.Field[Any]
    ListType: TypeAlias = (
        pa.ListType[Any]
        | pa.LargeListType[Any]
        | pa.FixedSizeListType[Any, Any]
        | pa.ListViewType[Any]
        | pa.LargeListViewType[Any]
    )
else:
    Array, ChunkedArray, ListArray, DictionaryArray = pa.Array, pa.ChunkedArray, pa.ListArray, pa.DictionaryArray
    Scalar, Field, ListType = pa.Scalar, pa.Field, pa.DataType
