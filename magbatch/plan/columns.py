"""Input columns of a job: their common types over all files, and their names in the output."""

from collections import Counter

import pyarrow as pa

from magbatch.answers import made_columns
from magbatch.errors import RowError, SpecError
from magbatch.plan.inputs import PlannedFile
from magbatch.schema import RESERVED_COLUMNS
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns, input_columns, named_by
from magbatch.spec.template import template_columns
from magbatch.storage.columns import (
    as_chat,
    as_text,
    common,
    is_bytes,
    plain,
    settled,
    short,
    written_as,
    written_name,
)
from magbatch.storage.partitions import from_path, key_type

_Kinds = tuple[tuple[str, pa.DataType], ...]  # names of columns, each with its type


def output_names(spec: JobSpec) -> dict[str, str]:
    """Name in the output of each carried column, in the order of `carried_columns`.

    A column keeps its name unless the output already has that name. Otherwise `input_` is put in front, repeatedly if
    needed. Case is ignored, because DuckDB, Spark and Athena ignore it in names of columns.

    Example: a job that carries `id`, `answer` and `ID` gets
    `{'id': 'id', 'answer': 'input_answer', 'ID': 'input_ID'}`.
    """
    names = carried_columns(spec.input)
    taken = {name.lower() for name in (*RESERVED_COLUMNS, *made_columns(spec).names)}
    found = dict[str, str]()
    for name in names:  # first the columns that can keep their names, whatever their position
        if name.lower() not in taken:
            found[name] = name
            taken.add(name.lower())
    for name in names:
        if name in found:
            continue
        written = name
        while written.lower() in taken:
            written = f"input_{written}"
        found[name] = written
        taken.add(written.lower())
    return {name: found[name] for name in names}


def with_output_names(spec: JobSpec, columns: pa.Schema) -> pa.Schema:
    """The planned columns, with their names in the output."""
    for name, written in output_names(spec).items():
        columns = columns.set(columns.get_field_index(name), written_as(columns.field(name), written))
    return columns


def are_planned(spec: JobSpec, columns: pa.Schema) -> bool:
    """Whether planned columns are the columns that a job reads, with the names that it gives them in the output."""
    written = {name: written_name(columns.field(name)) for name in carried_columns(spec.input) if name in columns.names}
    return columns.names == input_columns(spec) and written == output_names(spec)


def renamed_note(columns: pa.Schema) -> list[str]:
    """A note on carried columns that have another name in the output; empty if there are none."""
    pairs = [(column.name, written_name(column)) for column in columns]
    listed = ", ".join(f"{name!r} is written as {written!r}" for name, written in pairs if name != written)
    return [f"carried columns whose names the output has already: {listed}"] if listed else []


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


def check_expected(columns: pa.Schema, expected: str | None) -> None:
    """Check that right answers can be compared with answers, which are text.

    Raises:
        SpecError: The column's values have no text form.
    """
    kind = columns.field(expected).type if expected is not None else pa.string()
    if pa.types.is_nested(kind) or is_bytes(kind) or pa.types.is_duration(kind) or isinstance(kind, pa.UuidType):
        raise SpecError(f"input.columns.expected: the column {expected!r} is {kind}; answers are compared with text")


def check_max_tokens(columns: pa.Schema, name: str | None) -> None:
    """Check that the column of token limits has whole numbers.

    Raises:
        SpecError: The column has another type.
    """
    kind = columns.field(name).type if name is not None else pa.null()
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SpecError(f"input.columns.max_tokens: the column {name!r} is {kind}; tokens are whole numbers")
