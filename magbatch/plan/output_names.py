"""Output names of the carried columns; a column gets another name if the output already has a column of its name."""

import pyarrow as pa

from magbatch.answers import made_columns
from magbatch.schema import RESERVED_COLUMNS
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns, input_columns
from magbatch.storage.columns import (
    written_as,
    written_name,
)


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
