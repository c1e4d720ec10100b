"""Failed rows are asked again with a higher limit if a limit made them fail."""

from magbatch.cli.retry_hints import FIELDS, retry_command, retry_lines
from magbatch.errors import ErrorCode

# A higher value of no field helps these rows: the input, the spec's text or the engine must change.
WITHOUT_FIELD = {
    ErrorCode.FILE_UNREADABLE, ErrorCode.FILE_SCHEMA, ErrorCode.FILE_CHANGED, ErrorCode.ROW_UNREADABLE,
    ErrorCode.MISSING_VALUE, ErrorCode.TEMPLATE_ERROR, ErrorCode.INVALID_MESSAGES, ErrorCode.IMAGE_UNREADABLE,
    ErrorCode.IMAGE_UNFETCHABLE, ErrorCode.URL_REFUSED, ErrorCode.DOCUMENT_UNREADABLE, ErrorCode.DOCUMENT_ENCRYPTED,
    ErrorCode.DOCUMENT_EMPTY, ErrorCode.DOCUMENT_UNFETCHABLE, ErrorCode.IMAGES_UNSUPPORTED, ErrorCode.ENGINE_REJECTED,
    ErrorCode.ENGINE_KILLER, ErrorCode.READER_KILLER, ErrorCode.INTERNAL,
}  # fmt: skip


def test_each_code_has_its_fields_or_is_known_to_have_none() -> None:
    assert not FIELDS.keys() & WITHOUT_FIELD
    assert FIELDS.keys() | WITHOUT_FIELD == set(ErrorCode)


def test_rows_that_a_limit_fails_are_asked_again_with_the_limit_named() -> None:
    counts = {"missing_value": 1, "prompt_too_long": 2}
    raised = "magbatch retry /o --where prompt_too_long --set limits.max_prompt_tokens=N"
    assert retry_command("/o", counts) == raised
    assert retry_lines("/o", counts) == [
        "ask failed rows again: magbatch retry /o", f"raise limits.max_prompt_tokens: {raised}"
    ]  # fmt: skip
    assert retry_command("/o", {"missing_value": 3}) == "magbatch retry /o"
