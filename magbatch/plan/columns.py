"""Input columns of a job and their common types over all files."""

from collections import Counter

import pyarrow as pa

from magbatch.errors import RowError, SpecError
from magbatch.plan.inputs import PlannedFile
from magbatch.spec import JobSpec
from magbatch.spec.columns import named_by
from magbatch.spec.template import template_columns
from magbatch.storage.columns import (
    as_chat,
    as_text,
    common,
    plain,
    settled,
    short,
)
from magbatch.storage.partitions import from_path, key_type

_Kinds = tuple[tuple[str, pa.DataType], ...]  # names of columns, each with its type


def mixed_note(files: list[PlannedFile], columns: pa.Schema) -> list[str]:
    """Notes on columns whose type in some file has values that the planned type cannot hold."""
    found = dict[str, tuple[PlannedFile, pa.DataType]]()
    for file in files:
        if file.facts is None or file.problem is not None or not file.rows:
            continue
        for column in columns:
            index = file.facts.schema.get_field_index(column.name)
            have = plain(file.facts.schema.field(index).type) if index >= 0 else pa.null()
            if column.name not in found and _may_not_fit(have, column.type):
                found[column.name] = file, have
    return [
        f"column {name!r} is {short(have)} in {file.info.name} and {short(columns.field(name).type)} in the job: "
        "a value that does not fit makes its row a dead letter"
        for name, (file, have) in found.items()
    ]


def _may_not_fit(have: pa.DataType, kind: pa.DataType) -> bool:
    """Whether some value of a file's type cannot be converted to the planned type."""
    if pa.types.is_floating(kind):
        exact_bits = {16: 11, 32: 24, 64: 53}[kind.bit_width]  # IEEE 754: wider whole numbers lose digits
        return bool(pa.types.is_decimal(have) or (pa.types.is_integer(have) and have.bit_width > exact_bits))
    if pa.types.is_timestamp(kind) and pa.types.is_timestamp(have):
        return bool(kind.unit != have.unit)
    return bool(pa.types.is_uint64(have) and pa.types.is_signed_integer(kind))


def check_known(spec: JobSpec, files: list[PlannedFile], names: list[str]) -> None:
    """Check that each column is in some file; a column in no file is a mistake in the spec, not in the files.

    Raises:
        SpecError: A column is in no readable file.
    """
    read = [file for file in files if file.facts is not None]
    known = [file for file in read if file.rows] or [file for file in read if file.facts and file.facts.names]
    for name in names:
        if known and not any(file.has(name) for file in known):
            raise SpecError(f"{named_by(spec, name)}: no input file has a column {name!r}; they have {known[0].listed}")


def common_types(files: list[PlannedFile], names: list[str]) -> pa.Schema:
    """Find the types that all files are converted to; a file that cannot be converted is marked as bad.

    Files are merged in the order of their types' row counts, so that a single odd file is refused, not all other
    files. Files without rows do not count; if all are empty, the first counts. The type of a column that a file lacks
    comes from the values in its path.

    Args:
        files: All input files; they are changed in place.
        names: Columns that the job reads.
    """
    usable = [(file, file.facts.schema) for file in files if file.facts is not None and file.problem is None]
    usable = [item for item in usable if item[0].rows] or usable[:1]
    keys = {name for file, _ in usable for name in file.keys}
    of_keys = {name: key_type(file.keys[name] for file, _ in usable if name in file.keys) for name in keys}
    rows = Counter[_Kinds]()
    typed: list[tuple[PlannedFile, _Kinds]] = []
    for file, schema in usable:
        of_file = {name: plain(schema.field(name).type) for name in names if schema.get_field_index(name) >= 0}
        kinds = tuple((name, (of_keys | of_file)[name]) for name in names if file.has(name))
        typed.append((file, kinds))
        rows[kinds] += file.rows
    found = dict[str, pa.DataType]()
    for file, kinds in sorted(typed, key=lambda item: -rows[item[1]]):
        try:
            found = {name: common(name, found.get(name, kind), kind) for name, kind in kinds}
        except RowError as error:  # `found` stays as it was: a bad file changes no types
            file.refuse(error.code, error.message)
    fields = [pa.field(name, settled(found.get(name, pa.null()))) for name in names]
    return pa.schema([from_path(field) if field.name in keys else field for field in fields])


def with_texts(spec: JobSpec, columns: pa.Schema) -> pa.Schema:
    """The planned columns, with text as the type of columns that are read as text."""
    given = spec.input.columns
    pictures = {*given.images, given.document}
    texts = {given.prompt, given.expected}
    if spec.prompt.template is not None:
        texts |= template_columns(spec.prompt.template)
    for index, column in enumerate(columns):
        if column.name in texts - pictures:
            columns = columns.set(index, column.with_type(as_text(column.type)))
        elif column.name == given.messages:
            columns = columns.set(index, column.with_type(as_chat(column.type)))
    return columns
