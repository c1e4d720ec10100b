"""What a job's dead letters say, in a few words: their codes with counts, and examples of their messages."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from magbatch.counts import counted
from magbatch.errors import MagbatchError
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.objects import read_columns
from magbatch.schema import ERRORS, ObjectName
from magbatch.spec import JobSpec
from magbatch.totals import Totals

EXAMPLES = 3  # of each code
MOST_OBJECTS = 64  # that are read for examples: a code that all of these lack is shown by its count alone
MESSAGE_CHARS = 300  # of an example on a line


@dataclass(frozen=True, slots=True)
class Example:
    """One dead letter.

    Attributes:
        code: Its error code.
        row_id: Its row.
        message: What is wrong with it.
    """

    code: str
    row_id: str
    message: str


def listed(by_code: dict[str, int]) -> str:
    """Codes with counts, the most frequent first: `answer_invalid 10, row_timeout 2`."""
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
    """A few dead letters of each code, from the first objects that have some.

    Nobody's rows hang on them: what cannot be read is passed over.

    Args:
        ledger: The output.
        by_code: The codes that are looked for, with their counts.
        each: Of each code, at most.
        but: Rows that are left out: they have an answer meanwhile.
        gone: Objects that are left out: others have taken their place.
    """
    wanted = {code: min(each, count) for code, count in by_code.items()}
    found: dict[str, list[Example]] = {code: [] for code in wanted}
    for letter in _letters(ledger, gone):
        of_code = found.get(letter.code)
        if of_code is not None and len(of_code) < wanted[letter.code] and letter.row_id not in but:
            of_code.append(letter)
        if all(len(found[code]) >= count for code, count in wanted.items()):
            break
    order = sorted(wanted, key=lambda code: (-by_code[code], code))
    return [letter for code in order for letter in found[code]]


def _letters(ledger: Ledger, gone: Collection[ObjectName]) -> Iterator[Example]:
    columns = ["error_code", "row_id", "message"]
    read = 0
    for part in ledger.objects(ERRORS):
        if not part.rows or part in gone:
            continue
        if read == MOST_OBJECTS:
            return
        read += 1
        try:
            table = read_columns(ledger.store, part, columns)
        except (FileNotFoundError, MagbatchError):  # moved since it was listed, or damaged, which `verify` tells
            continue
        for row in table.to_pylist():
            yield Example(row["error_code"], row["row_id"], row["message"])


def explained(ledger: Ledger) -> str:
    """The dead letters of an output in a sentence or two: codes, an example, and where they are."""
    by_code = ledger.totals(list(ledger.objects(ERRORS))).by_code
    return _sentence(by_code, examples(ledger, by_code, each=1), ledger.path)


def _sentence(by_code: dict[str, int], found: list[Example], output: str) -> str:
    example = f'; such as "{_short(found[0].message)}"' if found else ""
    return f"Their codes: {listed(by_code)}{example}. Dead letters: {output}/errors/*.parquet"


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARS else f"{message[: MESSAGE_CHARS - 1]}…"


def verdict(spec: JobSpec, planned: int, totals: Totals, ledger: Ledger) -> str | None:
    """Why a complete job ends with exit code 1, in a line; None if it does not.

    More rows failed than `limits.max_failed_rows` allows; or, without that limit, none was answered.

    Args:
        spec: The job.
        planned: Its rows.
        totals: Of them.
        ledger: The job's output.
    """
    allowed = spec.limits.failed_allowed(planned)
    if allowed is not None and totals.failed > allowed:
        begin = f"{counted(totals.failed, 'row')} failed, more than limits.max_failed_rows allows ({allowed:,})."
    elif allowed is None and totals.failed and not totals.answered:
        begin = f"None of {counted(planned, 'row')} was answered, each is a dead letter."
    else:
        return None
    said = _sentence(totals.by_code, examples(ledger, totals.by_code, each=1), ledger.path)
    return f"{begin} {said}. Mend the cause and ask them again (retry), or allow them: limits.max_failed_rows"
