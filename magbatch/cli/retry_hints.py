"""Commands that ask failed rows again, and the spec fields that decide whether a row fails."""

from magbatch.cli.command_line import command, shown_path
from magbatch.errors import ErrorCode

# Fields that decide whether a row fails with this code. Without a higher value, the row would fail again.
FIELDS: dict[str, tuple[str, ...]] = {
    ErrorCode.PROMPT_TOO_LONG: ("limits.max_prompt_tokens",),
    ErrorCode.TOO_MANY_IMAGES: ("limits.max_images",),
    ErrorCode.IMAGE_TOO_LARGE: ("limits.max_image_pixels", "limits.max_image_bytes"),
    ErrorCode.IMAGE_TIMEOUT: ("limits.image_timeout_s",),
    ErrorCode.DOCUMENT_TOO_LARGE: ("limits.max_document_bytes", "limits.document_memory_mb"),
    ErrorCode.DOCUMENT_TIMEOUT: ("limits.document_timeout_s",),
    ErrorCode.TOO_MANY_PAGES: ("limits.max_pages",),
    ErrorCode.ROW_TIMEOUT: ("limits.row_timeout_s",),
    ErrorCode.ANSWER_INVALID: ("sampling.max_tokens",),
}


def retry_command(output: str, by_code: dict[str, int]) -> str:
    """The command that asks failed rows again.

    If a field decides the most frequent code, the command asks the rows of that code and sets the field.

    Args:
        output: Path or URL of the output.
        by_code: Error code to number of dead letters.

    >>> retry_command("/o", {"missing_value": 1, "prompt_too_long": 2})
    'magbatch retry /o --where prompt_too_long --set limits.max_prompt_tokens=N'
    """
    first = min(by_code, key=lambda code: (-by_code[code], code), default="")
    return _retry(output, first) if first in FIELDS else command("retry", shown_path(output))


def retry_lines(output: str, by_code: dict[str, int]) -> list[str]:
    """Lines about failed rows: how to ask all of them again, and one line for each code that a field decides.

    Args:
        output: Path or URL of the output.
        by_code: Error code to number of dead letters.
    """
    if not by_code:
        return []
    return [
        f"ask failed rows again: {command('retry', shown_path(output))}",
        *(f"raise {' or '.join(FIELDS[code])}: {_retry(output, code)}" for code in sorted(by_code) if code in FIELDS),
    ]


def _retry(output: str, code: str) -> str:
    return command("retry", shown_path(output), "--where", code, "--set", f"{FIELDS[code][0]}=N")
