"""One type for each input column, whatever the writers of its files chose, and its values in that type.

Arrow 26 gives wrong values, or none, where it casts list views, or nested types around a column of nulls. So nested
values are taken apart here, and Arrow casts their leaves alone.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.errors import ErrorCode, RowError
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns

_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
_WRITTEN_AS = b"magbatch.written_as"  # in the metadata of a planned column; absent if it keeps its name
NO_TEXT = frozenset({"bytes", "image"})  # fields of a chat that hold the bytes of an image


def written_name(column: pa.Field) -> str:
    """The name in the output of a planned column."""
    found: bytes | None = (column.metadata or {}).get(_WRITTEN_AS)
    return column.name if found is None else found.decode()


def written_as(column: pa.Field, name: str) -> pa.Field:
    """A planned column with a name in the output."""
    if name == column.name:
        return column
    return column.with_metadata((column.metadata or {}) | {_WRITTEN_AS: name.encode()})


def empty_table(columns: pa.Schema) -> pa.Table:
    """No rows, of any types: Arrow 26 makes no empty array of a type that holds an extension type, such as UUIDs."""
    return pa.Table.from_batches([], columns)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column's values are bytes, of any layout."""
    return any(test(kind) for test in _BYTES)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column's values are lists, of any layout."""
    return any(test(kind) for test in _LISTS) or pa.types.is_large_list_view(kind)


def plain(kind: pa.DataType) -> pa.DataType:
    """A type without what differs from writer to writer by accident: dictionaries, views, and names of such types."""
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
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field))
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(one) for one in kind])
    return kind


def _plain_field(one: pa.Field) -> pa.Field:
    return pa.field(one.name, plain(one.type), one.nullable)


def common(name: str, first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type that holds the values of two plain ones.

    Raises:
        RowError: `file_schema`: there is none.
    """
    if first.equals(second):
        return first
    is_uuid = isinstance(first, pa.UuidType) or isinstance(second, pa.UuidType)
    is_text = any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (first, second))
    for pair in () if is_uuid and is_text else ((first, second), (_stored(first), _stored(second))):
        schemas = [pa.schema([(name, kind)]) for kind in pair]
        try:
            return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
    raise RowError(
        ErrorCode.FILE_SCHEMA, f"the column {name!r} is {short(second)} here, but {short(first)} in other files"
    )


def _stored(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def settled(kind: pa.DataType) -> pa.DataType:
    """A type without columns or fields that hold nothing but nulls: those are text."""
    return _leaves(kind, lambda leaf: pa.string() if pa.types.is_null(leaf) else leaf)


def as_text(kind: pa.DataType) -> pa.DataType:
    """A type whose bytes are text: some writers leave Parquet's string annotation out. Reading checks the UTF-8."""
    return _leaves(kind, lambda leaf: pa.large_string() if is_bytes(leaf) else leaf)


def as_chat(kind: pa.DataType) -> pa.DataType:
    """The type of a chat whose texts are text; the bytes of its images stay bytes."""
    return _leaves(kind, lambda leaf: pa.large_string() if is_bytes(leaf) else leaf, NO_TEXT)


def as_keys(kind: pa.DataType) -> pa.DataType:
    """A type whose values are equal if and only if those of `kind` are, and that Python has all values of."""

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
    """A plain type with other leaves."""

    def field_of(one: pa.Field) -> pa.Field:
        kept = one.name in but and not pa.types.is_nested(one.type)
        return one if kept else one.with_type(_leaves(one.type, change, but))

    if pa.types.is_list(kind):
        return pa.list_(field_of(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field_of(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field_of(kind.value_field), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(field_of(kind.key_field), field_of(kind.item_field))
    if pa.types.is_struct(kind):
        return pa.struct([field_of(one) for one in kind])
    return change(kind)


def short(kind: pa.DataType) -> str:
    """A type's name for a message."""
    name = " ".join(str(kind).split())
    return name if len(name) <= 120 else f"{name[:120]}…"


def converted(table: pa.Table, columns: pa.Schema, row: int = 0) -> pa.Table:
    """The columns of a table in the planned types, checked.

    Args:
        table: Columns as a file has them.
        columns: Their names and planned types.
        row: Position in the file of the table's row, for the message about a single one.

    Raises:
        RowError: `row_unreadable`: a value is not what its column says, or does not fit; the message names the column.
    """
    arrays = []
    for one in columns:
        found = table.column(one.name)
        try:
            made = pa.chunked_array([convert(chunk, one.type) for chunk in found.chunks], one.type)
            made.validate(full=True)  # Parquet's readers take any bytes for text
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


def convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array's values in another type; every value, or an error of Arrow's."""
    have = array.type
    if have.equals(kind):
        return array
    if isinstance(have, pa.BaseExtensionType):
        return convert(array.storage, kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, convert(array, kind.storage_type))
    if pa.types.is_null(have):
        return pa.nulls(len(array), kind)
    if pa.types.is_dictionary(have):
        return convert(array.dictionary_decode(), kind)
    if pa.types.is_run_end_encoded(have):
        return convert(pa.compute.run_end_decode(array), kind)
    if is_list(have) and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        values = convert(array.flatten(), kind.value_type)
        make = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        return make.from_arrays(
            _offsets(array, large=pa.types.is_large_list(kind)), values, type=kind, mask=array.is_null()
        )
    if pa.types.is_map(have) and pa.types.is_map(kind):
        ends = array.offsets.to_numpy()
        begin, rows = int(ends[0]), int(ends[-1] - ends[0])
        keys = convert(array.keys.slice(begin, rows), kind.key_type)
        items = convert(array.items.slice(begin, rows), kind.item_type)
        return pa.MapArray.from_arrays(pa.array(ends - begin), keys, items, type=kind, mask=array.is_null())
    if pa.types.is_struct(have) and pa.types.is_struct(kind):
        children = [_child(array, one) for one in kind]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null()) if children else array
    return _number(array, kind)


def _number(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A cast that keeps each value, or an error of Arrow's, also where decimals are made of others or become others."""
    if pa.types.is_integer(array.type) and pa.types.is_decimal(kind):  # Arrow asks for room for all of the type
        return array.cast(pa.decimal256(76, kind.scale)).cast(kind)
    made = array.cast(kind)
    if pa.types.is_decimal(array.type) and pa.types.is_floating(kind) and not made.cast(array.type).equals(array):
        raise pa.ArrowInvalid(f"a value has more digits than a {kind} holds")
    return made


def _child(array: pa.StructArray, one: pa.Field) -> pa.Array:
    at = array.type.get_field_index(one.name)  # -1: it is not there, or twice
    return convert(array.field(at), one.type) if at >= 0 else pa.nulls(len(array), one.type)


def _offsets(array: pa.Array, *, large: bool) -> pa.Array:
    """Where each list of an array begins in what `flatten` gives, and the end."""
    lengths = pa.compute.fill_null(pa.compute.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pa.array(ends, pa.int64()).cast(pa.int64() if large else pa.int32())


def carried_fields(spec: JobSpec, columns: pa.Schema) -> pa.Schema:
    """The carried columns as the output has them.

    Args:
        spec: The job.
        columns: The planned input columns, which hold their names in the output.
    """
    planned = [columns.field(name) for name in carried_columns(spec.input)]
    return pa.schema([pa.field(written_name(one), one.type) for one in planned])
