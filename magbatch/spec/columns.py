"""The input columns that a job reads, and the spec field that names each."""

from magbatch.errors import SpecError
from magbatch.spec.job import JobSpec
from magbatch.spec.sections_input import InputSpec
from magbatch.spec.template import template_columns


def carried_columns(spec: InputSpec) -> list[str]:
    """Columns copied to the output, each once: the user's id, then `carry`, then the expected answers."""
    names = [spec.columns.id, *spec.carry, spec.columns.expected]
    return list(dict.fromkeys(name for name in names if name))


def rendered_columns(spec: JobSpec) -> list[str]:
    """Input columns that appear in the prompt, each once."""
    columns = spec.input.columns
    names = [columns.prompt, columns.messages, *columns.images, columns.document]
    if spec.prompt.template is not None:
        names += sorted(template_columns(spec.prompt.template))
    return list(dict.fromkeys(name for name in names if name))


def input_columns(spec: JobSpec) -> list[str]:
    """Input columns that a job reads, each once."""
    names = [*rendered_columns(spec), spec.input.columns.max_tokens, *carried_columns(spec.input)]
    return list(dict.fromkeys(name for name in names if name))


def check_names(spec: JobSpec) -> None:
    """Check that no column has an empty name: an empty name means 'no column' elsewhere.

    Raises:
        SpecError: A column's name is empty.
    """
    given = spec.input.columns
    roles = given.model_dump()
    empty = [f"input.columns.{role}" for role, name in roles.items() if name == "" or (role == "images" and "" in name)]
    empty += ["input.carry"] if "" in spec.input.carry else []
    if empty:
        raise SpecError(f"{empty[0]}: a column's name is empty; leave the field out, or rename the column in the input")


def named_by(spec: JobSpec, name: str) -> str:
    """Path of the spec field that names an input column."""
    columns = spec.input.columns
    if name == columns.prompt:
        return "input.columns.prompt"
    if name == columns.messages:
        return "input.columns.messages"
    if name in columns.images:
        return "input.columns.images"
    if name == columns.document:
        return "input.columns.document"
    if name == columns.id:
        return "input.columns.id"
    if name == columns.expected:
        return "input.columns.expected"
    if name == columns.max_tokens:
        return "input.columns.max_tokens"
    if name in spec.input.carry:
        return "input.carry"
    return "prompt.template" if name in rendered_columns(spec) else "input.group"
