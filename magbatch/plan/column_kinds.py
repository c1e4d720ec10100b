"""Types of the input columns: a type that does not fit the column's use is refused."""

from typing import TypeGuard

import pyarrow as pa

from magbatch.arrow_types import ListType
from magbatch.errors import SpecError
from magbatch.spec import JobSpec
from magbatch.spec.columns import named_by
from magbatch.storage.columns import is_bytes, is_list

MAX_SHOWN_CHARS = 120  # characters of a type in a message: the type of a struct may be very long


def check_kinds(spec: JobSpec, columns: pa.Schema) -> None:
    """Check the types of the columns that a prompt is made of.

    Args:
        spec: Spec of the job, which says what each column is for.
        columns: Planned input columns, with the types that all files are converted to.

    Raises:
        SpecError: Some columns have a wrong type; the message names each with its type and what to do.
    """
    given = spec.input.columns
    wrong = dict[str, str]()
    if given.prompt is not None and spec.prompt.template is None:  # a template shows values of any type
        wrong[given.prompt] = _wrong_prompt(given.prompt, columns.field(given.prompt).type)
    if given.messages is not None:
        wrong[given.messages] = _wrong_chat(columns.field(given.messages).type)
    for name in filter(None, [*given.images, given.document]):
        wrong[name] = _wrong_file(columns.field(name).type)
    lines = [
        f"{named_by(spec, name)}: the column {name!r} is {shown(columns.field(name).type)}, {said}"
        for name, said in wrong.items()
        if said
    ]
    if lines:
        raise SpecError("\n".join(lines))


def shown(kind: pa.DataType) -> str:
    """A type for a message, shortened if it is long."""
    text = str(kind)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_file(kind: pa.DataType) -> bool:
    """Whether values can be an image or a document: bytes, a path or URL, or a struct of these."""
    if pa.types.is_struct(kind):
        return not {"bytes", "path"}.isdisjoint(field.name for field in kind)
    return _is_text(kind) or (is_bytes(kind) and not isinstance(kind, pa.BaseExtensionType))


def _is_chat(kind: pa.DataType) -> TypeGuard[ListType]:
    inner = kind.value_type if is_list(kind) else pa.null()
    return "role" in [field.name for field in inner] if pa.types.is_struct(inner) else False


def _wrong_prompt(name: str, kind: pa.DataType) -> str:
    if _is_text(kind):
        return ""
    if _is_chat(kind):
        return f"a chat, not text: name it in input.columns.messages instead: messages: {name}"
    inner = kind.value_type if is_list(kind) else kind
    if pa.types.is_struct(inner) and _is_file(inner):
        return (
            "a file, not text: name it in input.columns.images or input.columns.document, and write the question in "
            "prompt.template"
        )
    field = f".{kind[0].name}" if pa.types.is_struct(kind) and kind.num_fields else ""
    return (
        f'but a prompt is text: name a text column, or insert this one: prompt: {{template: "{{{{ {name}{field} }}}}"}}'
    )


def _wrong_chat(kind: pa.DataType) -> str:
    if _is_chat(kind) and "content" in [field.name for field in kind.value_type]:
        return ""
    hint = "; text is for input.columns.prompt" if _is_text(kind) else ""
    return f"but a chat is a list of structs with the fields `role` and `content`{hint}"


def _wrong_file(kind: pa.DataType) -> str:
    if _is_file(kind) or (is_list(kind) and _is_file(kind.value_type)):
        return ""
    return (
        "but an image or a document is bytes, text that names it, a struct with the field `bytes` or `path`, "
        "or a list of these"
    )


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
        SpecError: The column's values are not whole numbers.
    """
    kind = columns.field(name).type if name is not None else pa.null()
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SpecError(f"input.columns.max_tokens: the column {name!r} is {kind}; tokens are whole numbers")
