"""Summary of a job's dead letters: their codes with counts, and examples of their messages."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from magbatch.counts import counted
from magbatch.errors import MagbatchError
from magbatch.ledger.layout import errors_glob
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.objects import read_columns
from magbatch.schema import ERRORS, ObjectName
from magbatch.spec import JobSpec
from magbatch.totals import Totals

EXAMPLES = 3  # examples of each code
MAX_OBJECTS = 64  # objects read for examples; a code that none of them has is shown with its count alone
MESSAGE_CHARS = 300  # longest example in a line, in characters


@dataclass(frozen=True, slots=True)
class Example:
    """A dead letter to show.

    Attributes:
        code: Error code.
        row_id: Id of the row.
        message: Error message.
    """

    code: str
    row_id: str
    message: str


def listed(by_code: dict[str, int]) -> str:
    """Codes with counts, most frequent first: `answer_invalid 10, row_timeout 2`."""
    return ", ".join(
        f"{code} {count:,}" for code, count in sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    )


def examples(
    ledger: Ledger,
    by_code: dict[str, int],
    each: int = EXAMPLES,
    but: Collection[str] = (),
    gone: Collection[ObjectName] = (),
) -> list[Example]:
    """Collect a few dead letters of each code, from the first objects that have some.

    Objects that cannot be read are skipped: examples are for display only.

    Args:
        ledger: Output whose dead letters are read.
        by_code: Number of dead letters of each code to look for.
        each: Maximum number of examples of a code.
        but: Ids of rows to leave out, because they have got an answer since.
        gone: Objects to leave out, because other objects have replaced them.

    Returns:
        Examples, those of the most frequent code first.
    """
    wanted = {code: min(each, count) for code, count in by_code.items()}
    found: dict[str, list[Example]] = {code: [] for code in wanted}
    for letter in _letters(ledger, gone):
        same_code = found.get(letter.code)
        if same_code is not None and len(same_code) < wanted[letter.code] and letter.row_id not in but:
            same_code.append(letter)
        if all(len(found[code]) >= count for code, count in wanted.items()):
            break
    order = sorted(wanted, key=lambda code: (-by_code[code], code))
    return [letter for code in order for letter in found[code]]


def _letters(ledger: Ledger, gone: Collection[ObjectName]) -> Iterator[Example]:
    columns = ["error_code", "row_id", "message"]
    read = 0
    for name in ledger.objects(ERRORS):
        if not name.rows or name in gone:
            continue
        if read == MAX_OBJECTS:
            return
        read += 1
        try:
            table = read_columns(ledger.store, name, columns)
        except (FileNotFoundError, MagbatchError):  # moved since the listing; or damaged, which `verify` reports
            continue
        for row in table.to_pylist():
            yield Example(row["error_code"], row["row_id"], row["message"])


def explained(ledger: Ledger) -> str:
    """Describe the dead letters of an output in a sentence or two: codes, an example, and their path."""
    by_code = ledger.totals(list(ledger.objects(ERRORS))).by_code
    return _sentence(by_code, examples(ledger, by_code, each=1), ledger.path)


def _sentence(by_code: dict[str, int], found: list[Example], output: str) -> str:
    example = f'; such as "{_short(found[0].message)}"' if found else ""
    return f"Their codes: {listed(by_code)}{example}. Dead letters: {errors_glob(output)}"


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARS else f"{message[: MESSAGE_CHARS - 1]}…"


def verdict(spec: JobSpec, planned: int, totals: Totals, ledger: Ledger) -> str | None:
    """Explain in a line why a complete job ends with exit code 1; None if it does not.

    That happens if more rows failed than `limits.max_failed_rows` allows; without that limit, if no row was
    answered.

    Args:
        spec: Spec of the job, for `limits.max_failed_rows`.
        planned: Number of planned rows.
        totals: Sums over the job's objects.
        ledger: Output of the job, for examples.
    """
    allowed = spec.limits.failed_allowed(planned)
    if allowed is not None and totals.failed > allowed:
        failed = f"{counted(totals.failed, 'row')} failed, more than limits.max_failed_rows allows ({allowed:,})."
    elif allowed is None and totals.failed and not totals.answered:
        failed = f"None of {counted(planned, 'row')} was answered: each is a dead letter."
    else:
        return None
    said = _sentence(totals.by_code, examples(ledger, totals.by_code, each=1), ledger.path)
    return f"{failed} Fix the cause and run magbatch retry, or raise limits.max_failed_rows. {said}"
