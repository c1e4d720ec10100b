"""The Arrow type of each input column, even if it differs between files, and values converted to that type.

Arrow 26 gives wrong values, or fails, when it casts list views or nested types around a column of nulls. So this code
takes nested values apart and lets Arrow cast only the leaves.
"""

from collections.abc import Callable
from typing import Any, TypeGuard, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.arrow_types import Array, Field, ListArray, ListType
from magbatch.errors import ErrorCode, RowError
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns

_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
_WRITTEN_AS = b"magbatch.written_as"  # key in a planned column's metadata; absent if the column keeps its name
NO_TEXT = frozenset({"bytes", "image"})  # fields of a chat that hold the bytes of an image


def written_name(column: Field) -> str:
    """Return the name that a planned column has in the output."""
    found: bytes | None = (column.metadata or {}).get(_WRITTEN_AS)
    return column.name if found is None else found.decode()


def written_as(column: Field, name: str) -> Field:
    """Return a planned column that has another name in the output."""
    if name == column.name:
        return column
    return column.with_metadata(dict[Any, Any](column.metadata or {}) | {_WRITTEN_AS: name.encode()})


def empty_table(columns: pa.Schema) -> pa.Table:
    """Return a table without rows. Arrow 26 cannot make empty arrays of types that hold UUIDs or other extensions."""
    return pa.Table.from_batches([], columns)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes, in any of Arrow's layouts."""
    return any(test(kind) for test in _BYTES)


def is_list(kind: pa.DataType) -> TypeGuard[ListType]:
    """Whether a type is a list, in any of Arrow's layouts."""
    return any(test(kind) for test in _LISTS) or pa.types.is_large_list_view(kind)


def plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without the writer's layout: dictionaries, run-end encoding, views, extension wrappers."""
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, pa.UuidType) else plain(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), int(kind.list_size))
    if pa.types.is_map(kind):
        return _map_type(_plain_field(kind.key_field), _plain_field(kind.item_field))
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(one) for one in kind])
    return kind


def _plain_field(one: Field) -> Field:
    return pa.field(one.name, plain(one.type), one.nullable)


def _map_type(key: Field, item: Field) -> pa.DataType:
    made: pa.DataType = pa.map_(key, item)  # type: ignore[call-overload]  # the stubs know types only, no fields
    return made


def common(name: str, first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type that holds the values of two plain types.

    Args:
        name: Name of the column, for the message.
        first: Type in the files so far.
        second: Type in the next file.

    Raises:
        RowError: `file_schema`: no type holds both.
    """
    if first.equals(second):
        return first
    is_uuid = isinstance(first, pa.UuidType) or isinstance(second, pa.UuidType)
    is_text = any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (first, second))
    for pair in () if is_uuid and is_text else ((first, second), (_stored(first), _stored(second))):
        schemas = [pa.schema([(name, kind)]) for kind in pair]
        try:
            found: pa.DataType = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
        return found
    raise RowError(
        ErrorCode.FILE_SCHEMA, f"the column {name!r} is {short(second)} here, but {short(first)} in other files"
    )


def _stored(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def settled(kind: pa.DataType) -> pa.DataType:
    """Return a type in which columns and fields that held only nulls are text."""
    return _leaves(kind, lambda leaf: pa.string() if pa.types.is_null(leaf) else leaf)


def as_text(kind: pa.DataType) -> pa.DataType:
    """Return a type whose bytes are text: some writers omit Parquet's string annotation. Reading checks the UTF-8."""
    return _leaves(kind, lambda leaf: pa.large_string() if is_bytes(leaf) else leaf)


def as_chat(kind: pa.DataType) -> pa.DataType:
    """Return the type of a chat in which bytes are text, except the bytes of images."""
    return _leaves(kind, lambda leaf: pa.large_string() if is_bytes(leaf) else leaf, NO_TEXT)


def as_keys(kind: pa.DataType) -> pa.DataType:
    """Return a type for comparing values: equal exactly if the values of `kind` are, and convertible to Python.

    Python lacks some of Arrow's values, such as timestamps in nanoseconds; their integers are compared instead.
    """

    def leaf_key(leaf: pa.DataType) -> pa.DataType:
        if is_bytes(leaf) or pa.types.is_string(leaf) or pa.types.is_large_string(leaf):
            return pa.large_binary()
        if isinstance(leaf, pa.BaseExtensionType):
            return leaf_key(leaf.storage_type)
        if pa.types.is_temporal(leaf):
            return pa.int64() if leaf.bit_width == 64 else pa.int32()
        return leaf if pa.types.is_integer(leaf) or pa.types.is_boolean(leaf) else pa.string()

    return _leaves(kind, leaf_key)


def _leaves(
    kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType], but: frozenset[str] = frozenset()
) -> pa.DataType:
    """Return a plain type with changed leaves; leaves of the fields named in `but` stay as they are."""

    def field_of(one: Field) -> Field:
        kept = one.name in but and not pa.types.is_nested(one.type)
        return one if kept else one.with_type(_leaves(one.type, change, but))

    if pa.types.is_list(kind):
        return pa.list_(field_of(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field_of(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field_of(kind.value_field), int(kind.list_size))
    if pa.types.is_map(kind):
        return _map_type(field_of(kind.key_field), field_of(kind.item_field))
    if pa.types.is_struct(kind):
        return pa.struct([field_of(one) for one in kind])
    return change(kind)


def short(kind: pa.DataType) -> str:
    """Return a type's name for a message, at most 121 characters."""
    name = " ".join(str(kind).split())
    return name if len(name) <= 120 else f"{name[:120]}…"


def converted(table: pa.Table, columns: pa.Schema, row: int = 0) -> pa.Table:
    """Convert the columns of a table to their planned types, and check every value.

    Args:
        table: Columns as the file has them.
        columns: Names and planned types of the columns.
        row: Position of the table's row in the file, for the message about a single row.

    Raises:
        RowError: `row_unreadable`: a value is damaged or does not fit the planned type; the message names the column.
    """
    arrays = []
    for one in columns:
        found = table.column(one.name)
        try:
            made = pa.chunked_array([convert(chunk, one.type) for chunk in found.chunks], one.type)
            made.validate(full=True)  # Arrow's Parquet reader does not check that text is UTF-8
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            if found.type.equals(one.type):
                raise RowError(ErrorCode.ROW_UNREADABLE, f"damaged at row {row}: column {one.name!r}: {why}") from error
            raise RowError(
                ErrorCode.ROW_UNREADABLE,
                f"row {row}: column {one.name!r} is {short(found.type)} in this file and {short(one.type)} in the job: "
                f"{why}",
            ) from error
        arrays.append(made)
    return pa.Table.from_arrays(arrays, schema=columns) if arrays else table.select([])


def convert(array: Array, kind: pa.DataType) -> Array:
    """Convert an array to another type without loss.

    Raises:
        pa.ArrowException: A value does not fit the type.
    """
    have = array.type
    if have.equals(kind):
        return array
    if isinstance(array, pa.ExtensionArray):
        return convert(array.storage, kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, convert(array, kind.storage_type))
    if pa.types.is_null(have):
        nulls: Array = pa.nulls(len(array), kind)  # type: ignore[call-overload]  # the stubs want the exact type
        return nulls
    if isinstance(array, pa.DictionaryArray):
        return convert(array.dictionary_decode(), kind)
    if pa.types.is_run_end_encoded(have):
        return convert(pa.compute.run_end_decode(array), kind)  # type: ignore[attr-defined]  # not in the stubs
    if is_list(have) and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        values = convert(cast(ListArray, array).flatten(), kind.value_type)
        make: Any = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        lists: Array = make.from_arrays(
            _offsets(array, large=pa.types.is_large_list(kind)), values, type=kind, mask=array.is_null()
        )
        return lists
    if isinstance(array, pa.MapArray) and pa.types.is_map(kind):
        ends = array.offsets.to_numpy()
        start, rows = int(ends[0]), int(ends[-1] - ends[0])
        keys = convert(array.keys.slice(start, rows), kind.key_type)
        items = convert(array.items.slice(start, rows), kind.item_type)
        maps: Array = pa.MapArray.from_arrays(  # type: ignore[call-overload]  # the stubs know no items with a type
            pa.array(ends - start), keys, items, type=kind, mask=array.is_null()
        )
        return maps
    if isinstance(array, pa.StructArray) and pa.types.is_struct(kind):
        children = [_child(array, one) for one in kind]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null()) if children else array
    return _number(array, kind)


def _number(array: Array, kind: pa.DataType) -> Array:
    """Cast leaves without loss, decimals included.

    Raises:
        pa.ArrowException: A value does not fit the type.
    """
    # Arrow wants a decimal wide enough for every integer of the type; the values may need fewer digits.
    if pa.types.is_integer(array.type) and pa.types.is_decimal(kind):
        return array.cast(pa.decimal256(76, kind.scale)).cast(kind)
    made = array.cast(kind)
    if pa.types.is_decimal(array.type) and pa.types.is_floating(kind) and not made.cast(array.type).equals(array):
        raise pa.ArrowInvalid(f"a value has more digits than a {kind} holds")
    return made


def _child(array: pa.StructArray, one: Field) -> Array:
    at = array.type.get_field_index(one.name)  # -1 if there is no such field, or two of them
    return convert(array.field(at), one.type) if at >= 0 else pa.nulls(len(array), one.type)


def _offsets(array: Array, *, large: bool) -> Array:
    """Return the offsets of an array's lists within `array.flatten()`.

    Args:
        array: Lists, (rows,).
        large: Whether the offsets are int64; else int32.

    Returns:
        Offsets, int64 or int32 (rows + 1,): the start of each list, then the end of the last.
    """
    lengths: Any = pa.compute.list_value_length(array)
    ends = np.concatenate([[0], np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)])
    return pa.array(ends, pa.int64()).cast(pa.int64() if large else pa.int32())


def carried_fields(spec: JobSpec, columns: pa.Schema) -> pa.Schema:
    """Return the carried columns with their names in the output.

    Args:
        spec: Spec of the job.
        columns: Planned input columns; their metadata holds their names in the output.
    """
    planned = [columns.field(name) for name in carried_columns(spec.input)]
    return pa.schema([pa.field(written_name(one), one.type) for one in planned])
