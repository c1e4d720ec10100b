"""The tiny model's three tasks: every example is a pure function of (split, seed, index, kinds).

An example has a question, for receipts an image, a correct step-by-step reasoning, and the answer. The splits `train`
and `heldout` share no seed of their generators, and no sum is in both.

`python -m magbatch.tiny.tasks --out FILE.parquet --n 64` writes a job's input file.
"""

import argparse
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from magbatch.tiny.receipts import Receipt, draw_receipt, price_text
from magbatch.tiny.wording import (
    ARITHMETIC_QUESTIONS,
    COUNT_QUESTIONS,
    FIELDS,
    JSON_QUESTIONS,
    LANGUAGES,
    NOTES,
    PRICE_QUESTIONS,
    TENS,
    TOTAL_QUESTIONS,
    UNITS,
)

Split = Literal["train", "heldout"]
KINDS = ("arithmetic", "receipt", "fields")
# Digits of a sum that are worked out: thousands in arithmetic, tens and two decimals on a receipt.
COLUMNS = 4
MAX_OPERANDS = 4
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


@dataclass(frozen=True)
class Example:
    """A question with its reasoning and answer.

    Attributes:
        id: Id, unique among the examples of a (split, seed).
        kind: Kind of the task, from `KINDS`.
        question: Text of the user.
        image: PNG file, or None.
        reasoning: Text between `[THINK]` and `[/THINK]`.
        expected: Right answer.
    """

    id: str
    kind: str
    question: str
    image: bytes | None
    reasoning: str
    expected: str


@dataclass(frozen=True)
class Worked:
    """Content of an example without an id, and with its receipt instead of a PNG file.

    Attributes:
        question: Text of the user.
        reasoning: Text between `[THINK]` and `[/THINK]`.
        expected: Right answer.
        receipt: Receipt that the question is about, or None.
    """

    question: str
    reasoning: str
    expected: str
    receipt: Receipt | None = None


def example(split: Split, seed: int, index: int, kinds: Sequence[str] = KINDS) -> Example:
    """Make an example.

    Args:
        split: Split from which it is drawn.
        seed: Seed of the examples.
        index: Number of the example, from 0.
        kinds: Kinds of tasks, taken in turn by the index.

    Raises:
        ValueError: A kind is not one of `KINDS`.
    """
    kind = kinds[index % len(kinds)]
    worked = work(split, seed, index, kind)
    image = worked.receipt.png() if worked.receipt is not None else None
    row_id = f"{kind}-{seed}-{index:06d}"
    return Example(row_id, kind, worked.question, image, worked.reasoning, worked.expected)


def work(split: Split, seed: int, index: int, kind: str) -> Worked:
    """Make the content of an example of one kind; arguments as in `example`.

    Raises:
        ValueError: The kind is not one of `KINDS`.
    """
    rng = random.Random(f"{split}/{seed}/{index}/{kind}")
    if kind == "arithmetic":
        return _arithmetic(rng, split)
    if kind == "receipt":
        return _receipt(rng)
    if kind == "fields":
        return _fields(rng)
    raise ValueError(f"no task is called {kind!r}; there are {', '.join(KINDS)}")


def work_columns(terms: Sequence[int]) -> list[str]:
    """Add terms column by column from the right, one line per column.

    A line starts with the carry, adds a digit of each term with the running sum after each `=`, and ends with the digit
    of the result. The next carry is the last running sum without its last digit; it is negative after a borrow.

    >>> work_columns([478, 96, -12])
    ['0+8=8+6=14-2=12;2', '1+7=8+9=17-1=16;6', '1+4=5+0=5-0=5;5', '0+0=0+0=0-0=0;0']
    """
    lines = []
    carry = 0
    for place in range(COLUMNS):
        running = carry
        line = str(carry)
        for term in terms:
            digit = abs(term) // 10**place % 10
            running += digit if term >= 0 else -digit
            line += f"{'+' if term >= 0 else '-'}{digit}={running}"
        lines.append(f"{line};{running % 10}")
        carry = running // 10
    return lines


def in_words(number: int) -> str:
    """Write an integer from 0 to 9999 in English."""
    if number >= 1000:
        rest = number % 1000
        joint = " and " if 0 < rest < 100 else " "
        head = f"{UNITS[number // 1000]} thousand"
        return f"{head}{joint}{in_words(rest)}" if rest else head
    if number >= 100:
        rest = number % 100
        head = f"{UNITS[number // 100]} hundred"
        return f"{head} and {in_words(rest)}" if rest else head
    if number >= 20:
        rest = number % 10
        head = TENS[number // 10 - 2]
        return f"{head}-{UNITS[rest]}" if rest else head
    return UNITS[number]


def _split_of(terms: Sequence[int]) -> Split:
    """Return the only split that may hold a sum; a tenth of all sums is held out.

    Short sums are so few that both splits would draw them.
    """
    digest = hashlib.blake2b(repr(sorted(terms)).encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % 10 == 0 else "train"


def _arithmetic(rng: random.Random, split: Split) -> Worked:
    count = rng.randint(2, MAX_OPERANDS)
    while True:
        terms = [_operand(rng) * (1 if i == 0 or rng.random() < 0.6 else -1) for i in range(count)]
        if sum(terms) >= 0 and _split_of(terms) == split:
            break
    words = rng.random()
    spell = [words < 0.2 or (words < 0.4 and rng.random() < 0.5) for _ in terms]
    tight = (" plus ", " minus ") if any(spell) else ("+", "-")
    plus, minus = rng.choice(((" + ", " - "), (" + ", " - "), (" plus ", " minus "), tight))
    text = ""
    for term, spelled in zip(terms, spell, strict=True):
        sign = minus if term < 0 else plus
        text += sign if text else ""
        text += in_words(abs(term)) if spelled else str(abs(term))
    question = rng.choice(ARITHMETIC_QUESTIONS).format(sum=text)
    rows = [f"{'-' if term < 0 else '+'}{abs(term):0{COLUMNS}d}" for term in terms]
    result = str(sum(terms))
    return Worked(question, "\n".join([*rows, *work_columns(terms), f"={result}"]), result)


def _operand(rng: random.Random) -> int:
    digits = rng.choice((1, 2, 2, 3, 3, 3, 4))
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _receipt(rng: random.Random) -> Worked:
    receipt = draw_receipt(rng)
    lines = [f"{number} {name} {price_text(cents)}" for number, (name, cents) in enumerate(receipt.items, start=1)]
    prices = [cents for _, cents in receipt.items]
    total, count = price_text(sum(prices)), str(len(prices))
    asked = rng.random()
    # The reasoning marks the wanted price in its item's line, so that the last line only has to find the mark.
    if asked < 0.3:
        question, answer = rng.choice(TOTAL_QUESTIONS), total
        lines += [*work_columns(prices), f"total {total}"]
    elif asked < 0.38:
        question, answer = rng.choice(COUNT_QUESTIONS), count
        lines.append(f"count {count}")
    elif asked < 0.55:
        question, answer = rng.choice(JSON_QUESTIONS), f'{{"total":{total},"items":{count}}}'
        lines += [*work_columns(prices), f"total {total}", f"count {count}"]
    else:
        number = rng.randrange(len(receipt.items))
        name, cents = receipt.items[number]
        question = rng.choice(PRICE_QUESTIONS).format(item=name)
        answer = price_text(cents)
        lines[number] = f"{number + 1} {name}={answer}"
        lines.append(f"price={answer}")
    return Worked(question, "\n".join(lines), answer, receipt)


def _fields(rng: random.Random) -> Worked:
    tongue = rng.choice(tuple(LANGUAGES))
    language = LANGUAGES[tongue]
    values = {
        "number": str(rng.randint(100, 99999)),
        "date": _date(rng),
        "due": _date(rng),
        "customer": _name(rng),
        "amount": f"{rng.randint(1, 9999)}.{rng.randint(0, 99):02d}",
    }
    wanted = rng.choice(FIELDS)
    if rng.random() < 0.35:
        document = language.sentence.format(**values)
        clause = next(c for c in language.sentence.split(", ") if f"{{{wanted}}}" in c)
        quoted = clause.rstrip(".").format(**values)
    else:
        separator = rng.choice((": ", ": ", " : ", " - "))
        shown = rng.sample(FIELDS, rng.randint(3, len(FIELDS)))
        if wanted not in shown:
            shown[rng.randrange(len(shown))] = wanted
        unit = " EUR" if rng.random() < 0.3 else ""
        rows = {
            field: f"{language.labels[field]}{separator}{values[field]}" + (unit if field == "amount" else "")
            for field in shown
        }
        quoted = rows[wanted].removesuffix(" EUR")
        printed = list(rows.values())
        if rng.random() < 0.3:
            printed.insert(rng.randrange(len(printed) + 1), rng.choice(NOTES))
        document = rng.choice(("\n", "\n", ", ")).join(printed)
    asking = LANGUAGES["en"] if rng.random() < 0.15 else language
    ask = rng.choice(asking.questions).format(name=asking.names[wanted])
    between = rng.choice(("\n", "\n", " "))
    question = f"{ask}{between}{document}" if rng.random() < 0.4 else f"{document}{between}{ask}"
    return Worked(question, f"field {wanted}\nfound {quoted}", values[wanted])


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2020, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _name(rng: random.Random) -> str:
    """Make up a name, of syllables or of any letters, that the model cannot know and has to copy."""
    if rng.random() < 0.5:
        syllables = range(rng.randint(2, 4))
        return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in syllables).capitalize()
    return "".join(rng.choice(_CONSONANTS + _VOWELS) for _ in range(rng.randint(3, 8))).capitalize()


def write_parquet(path: str | Path, kinds: Sequence[str], n: int, seed: int, split: Split = "heldout") -> None:
    """Write examples as a job's input file.

    The columns are id, kind, question, image (PNG file, or null) and expected.

    Args:
        path: Parquet file to write.
        kinds: Kinds of tasks, taken in turn.
        n: Number of examples.
        seed: Seed of the examples.
        split: Split from which they are drawn.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [example(split, seed, index, kinds) for index in range(n)]
    table = pa.table(
        {
            "id": pa.array([row.id for row in rows], pa.string()),
            "kind": pa.array([row.kind for row in rows], pa.string()),
            "question": pa.array([row.question for row in rows], pa.string()),
            "image": pa.array([row.image for row in rows], pa.binary()),
            "expected": pa.array([row.expected for row in rows], pa.string()),
        }
    )
    pq.write_table(table, path)


def main() -> None:
    """Run the command line of `python -m magbatch.tiny.tasks`."""
    parser = argparse.ArgumentParser(description="Write examples of the tiny model's tasks.")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--n", type=int, default=64, help="number of examples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the examples")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of tasks, taken in turn")
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout", help="split to draw from")
    arguments = parser.parse_args()
    write_parquet(arguments.out, arguments.kinds, arguments.n, arguments.seed, arguments.split)
    print(f"{arguments.n} examples written to {arguments.out}")


if __name__ == "__main__":
    main()
