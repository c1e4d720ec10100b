"""The part of the house style that a machine can hold: words, first words and lengths of sentences.

From a shell, for the files and folders that are named: `python tests/support/prose.py magbatch/plan README.md`.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_WORDS = 30
MAX_MEAN_WORDS = 16.0
# Words that a native reader has to parse twice, each with a plain one.
BANNED = {
    r"\bbeside\b": "next to, with, or besides",
    r"\bbut for\b": "except",
    r"\bmeanwhile\b": "in the meantime, or nothing",
    r"\banew\b": "again",
    r"\bas far as\b": "if, or up to",
    r"\bthe others\b": "the other rows, jobs and so on",
    r"\bwhoever\b": "the caller, user, process and so on",
    r"(?<!there )\b(?:is|are|was|were) no(?! longer)(?! more)\b": "is not a",
    r"\bwho asks\b": "the caller",
}
# A docstring's first word, and the first word after `name:`, is a noun, its article, a verb or a condition.
NO_FIRST = re.compile(
    r"(?:its?|ones?|them|they|that|those|these|which|what|whose|whom?|how|where|when|of|as|by|for|in|is|are|was|were|"
    r"has|have|at|from|to|with|since|until|both)\Z"
)
# Names in front of a description, in a docstring's list; `Raises:` has names of errors.
ITEM = re.compile(r"^\s+(\*{0,2}[\w.]+(?:, [\w.]+)*):\s+(.*)")
SECTION = re.compile(r"^\s*(Args|Attributes|Returns|Raises|Yields):\s*$")


@dataclass(frozen=True)
class Fault:
    """A sentence that breaks a rule.

    Attributes:
        path: File of the sentence.
        line: Line number in the file, from 1.
        rule: The rule, in words.
        text: The sentence, shortened.
    """

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text[:140]}"


def words(sentence: str) -> int:
    """Number of words; a code span is one."""
    plain = re.sub(r"`[^`]*`", "code", sentence)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    return len(re.findall(r"[^\W_][\w'’.,/%+:-]*", plain))


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph."""
    spans: list[str] = []

    def hide(match: re.Match[str]) -> str:
        spans.append(match.group(0))
        return f"`{len(spans) - 1}`"

    hidden = re.sub(r"`[^`]*`", hide, " ".join(text.split()))
    hidden = re.sub(r"\b(e\.g|i\.e|etc|vs|cf)\.", r"\1", hidden)
    parts = re.split(r"(?<=[.!?])[)\"”]?\s+(?=[\"“(`*\[]*[A-Z0-9`])", hidden)
    return [re.sub(r"`(\d+)`", lambda match: spans[int(match.group(1))], part) for part in parts if part.strip()]


def banned_in(text: str) -> Iterator[str]:
    """The rule of each banned word in a text."""
    for pattern, better in BANNED.items():
        if (found := re.search(pattern, text, re.IGNORECASE)) is not None:
            yield f"{found.group(0)!r}: say {better}"


def first_word(text: str) -> str:
    """First word in lower case; empty for a code span."""
    found = re.match(r"\W*([A-Za-z']+)", text) if not text.lstrip().startswith("`") else None
    return found.group(1).lower() if found else ""


def docstring_units(text: str) -> Iterator[tuple[int, str, bool]]:
    """Paragraphs and list items of a docstring.

    Yields:
        Line within the docstring, from 0; the text; whether its first word counts.
    """
    unit: list[str] = []
    begin, leads, in_code = 0, True, False
    for number, line in enumerate([*text.splitlines(), ""]):
        stripped = line.strip()
        item = ITEM.match(line)
        if stripped.startswith(("```", ">>>")):
            in_code = stripped.startswith(">>>") or not in_code
        ends = not stripped or in_code or SECTION.match(line) or item or stripped.startswith(("- ", "| ", "* "))
        if ends and unit:
            yield begin, " ".join(unit), leads
            unit = []
        if not stripped:
            in_code = False if in_code and not text.count("```") else in_code
            continue
        if in_code or SECTION.match(line) or stripped.startswith(("```", "|")):
            continue
        if item:
            unit, begin, leads = [item.group(2)], number, True
        elif unit:
            unit.append(stripped)
        else:
            unit, begin, leads = [stripped.removeprefix("- ")], number, number == 0
    if unit:
        yield begin, " ".join(unit), leads


def python_faults(path: Path) -> Iterator[Fault]:
    """Faults of docstrings, comments and messages of a Python file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstrings = set[int]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
            continue
        first = node.body[0]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
            continue
        if not isinstance(first.value.value, str):
            continue
        docstrings.add(first.value.lineno)
        for offset, text, leads in docstring_units(first.value.value):
            line = first.value.lineno + offset
            if leads and NO_FIRST.match(first_word(text)):
                yield Fault(path, line, f"{first_word(text)!r} comes first: begin with a noun", text)
            for rule in banned_in(text):
                yield Fault(path, line, rule, text)
            for sentence in sentences(text):
                if words(sentence) > MAX_WORDS:
                    yield Fault(path, line, f"{words(sentence)} words in one sentence", sentence)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node.lineno in docstrings:
            continue
        for rule in banned_in(node.value) if len(node.value.split()) > 2 else ():
            yield Fault(path, node.lineno, rule, node.value)
    yield from comment_faults(path, source)


def comment_faults(path: Path, source: str) -> Iterator[Fault]:
    """Banned words in the comments of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            for rule in banned_in(token.string):
                yield Fault(path, token.start[0], rule, token.string)


def markdown_units(text: str) -> Iterator[tuple[int, str, bool]]:
    """Paragraphs, list items and table cells of a Markdown file.

    Yields:
        Line number, from 1; the text; whether it is prose, and counts for the mean.
    """
    unit: list[str] = []
    begin, in_code = 0, False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        stripped = line.strip()
        if stripped.startswith("```"):
            in_code = not in_code
        is_item = re.match(r"([-*]|\d+\.)\s", stripped)
        ends = not stripped or in_code or is_item or stripped.startswith(("#", "|", "```", "<"))
        if ends and unit:
            yield begin, " ".join(unit), True
            unit = []
        if not stripped or in_code or stripped.startswith(("#", "```", "<")):
            continue
        if stripped.startswith("|"):
            for cell in stripped.strip("|").split("|"):
                yield number, cell.strip(), False
        elif unit:
            unit.append(stripped)
        else:
            unit, begin = [re.sub(r"^([-*]|\d+\.)\s+", "", stripped)], number


def markdown_faults(path: Path) -> Iterator[Fault]:
    """Faults of a README."""
    lengths: list[int] = []
    for line, text, is_prose in markdown_units(path.read_text(encoding="utf-8")):
        for rule in banned_in(re.sub(r"`[^`]*`", "code", text)):
            yield Fault(path, line, rule, text)
        for sentence in sentences(text):
            count = words(sentence)
            if count > MAX_WORDS:
                yield Fault(path, line, f"{count} words in one sentence", sentence)
            if is_prose and count > 2:
                lengths.append(count)
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    if mean > MAX_MEAN_WORDS:
        yield Fault(path, 1, f"{mean:.1f} words a sentence on average, {MAX_MEAN_WORDS:.0f} at most", path.name)


def faults(path: Path) -> list[Fault]:
    """All faults of a file, or of every Python and Markdown file of a folder."""
    if path.is_dir():
        return [fault for file in sorted(path.rglob("*")) if file.suffix in {".py", ".md"} for fault in faults(file)]
    return list(markdown_faults(path) if path.suffix == ".md" else python_faults(path))


if __name__ == "__main__":
    found = [fault for name in sys.argv[1:] for fault in faults(Path(name))]
    print(*found, f"{len(found)} faults", sep="\n")
    sys.exit(bool(found))
