"""YAML text to plain values, or one error message that names the line.

A spec is small and has only values that JSON has too. YAML allows more, and the rest is a slip or an attack: duplicate
keys, keys that are not text, infinite numbers, an anchor inside itself, aliases that multiply.
"""

import difflib
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from magbatch.errors import TextError

MAX_NODES = 50_000  # values of a spec; an alias counts at each use
MAX_DEPTH = 100  # levels of nested values
MAX_INT_CHARS = 1000  # characters of a whole number in any base; Python formats at most 4300 digits
# Keywords of JSON Schema whose keys are names chosen by the author.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_EXACT = ("enum", "const")  # values below these keywords are compared with answers
_AS_JSON = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.([0-9]*[1-9]|0))?([eE][-+]?[0-9]+)?")
# YAML reads 12:30 as 750, and 0123 as 83.
_MISREAD = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?0[0-7_]+")
# Part of PyYAML's message -> the usual mistake.
_HINTS = {
    r"'\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "text that holds `: ` needs quotes, and fields of one group one indentation",
    "found undefined alias": "text that begins with * needs quotes",
    "could not determine a constructor": "leave the tag (!…) out",
    "'<stream end>'": "a bracket or a quote is not closed",
    "unexpected end of stream": "a quote is not closed",
    "expected <block end>": "fields of one group have one indentation",
    "could not find expected ':'": "a field is written `name: value`",
    "found another document": "a spec is one document: leave `---` out",
}
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def values(text: str, *, exact: bool = False) -> Any:
    """Values of a YAML text: mappings with text keys, lists, and finite scalars.

    Args:
        text: The YAML.
        exact: Whether the text stands below `enum` or `const`.

    Raises:
        TextError: The text is not YAML, or has a value that a spec may not contain.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Walk().check(node, 0, (), exact=exact)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise TextError(_yaml_problem(error)) from error
    except ValueError as error:  # a scalar that looks like a date or a number, such as 2026-13-45
        raise TextError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise TextError(f"nested more than {MAX_DEPTH} levels deep") from error


def unquoted(text: str) -> dict[tuple[int | str, ...], str]:
    """Unquoted scalars of a YAML text that YAML does not read as text.

    Args:
        text: YAML that `values` accepts.

    Returns:
        Path -> scalar as written, such as {("input", "carry", 0): "no"}.
    """
    found: dict[tuple[int | str, ...], str] = {}

    def look(node: Node | None, field_path: tuple[int | str, ...]) -> None:
        if isinstance(node, MappingNode):
            for key, value in node.value:
                look(value, (*field_path, str(key.value)))
        elif isinstance(node, SequenceNode):
            for position, item in enumerate(node.value):
                look(item, (*field_path, position))
        elif isinstance(node, ScalarNode) and node.style is None and node.tag != _TEXT:
            found[field_path] = node.value

    look(yaml.SafeLoader(text).get_single_node(), ())
    return found


def file_text(path: str) -> str:
    """Text of a file.

    Raises:
        TextError: The file cannot be read. The message does not name the file.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"not UTF-8 text: byte {error.start:,} is {error.object[error.start]:#04x}") from error
    except ValueError as error:  # a null character
        raise TextError("not a file name: it has a null character") from error
    except OSError as error:
        raise TextError(_why_not(path, error)) from error


def _why_not(path: str, error: OSError) -> str:
    """Reason why a file cannot be read."""
    if isinstance(error, IsADirectoryError):
        return "this is a folder; give one YAML file"
    if isinstance(error, PermissionError):
        return "the file may not be read by this user"
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"the file cannot be read: {error.strerror or error}"
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f"there is no such file, and no folder {folder}"
    try:
        close = difflib.get_close_matches(name, os.listdir(folder or "."), n=1, cutoff=0.75)
    except OSError:
        close = []
    return f"there is no such file{f'; did you mean {os.path.join(folder, close[0])}?' if close else ''}"


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Message for a text that is not YAML: line, column, problem and a hint."""
    if isinstance(error, ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character[:1] or "?")
        return f"not YAML: the character U+{code:04X} at position {error.position:,}, which YAML does not allow"
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    mark, problem = error.problem_mark, " ".join((error.problem or error.context or "").split())
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    hint = next((f"; {words}" for said, words in _HINTS.items() if said in problem), "")
    return f"not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"


class _Walk:
    """Checks every value of a YAML text, at each of its uses."""

    def __init__(self) -> None:
        self._seen = 0

    def check(
        self, node: Node, depth: int, inside: tuple[int, ...], *, exact: bool = False, named: bool = False
    ) -> None:
        """Raise TextError if a spec may not contain a value.

        Args:
            node: The value.
            depth: Number of enclosing values.
            inside: Identities of the enclosing values.
            exact: Whether the value stands below `enum` or `const`.
            named: Whether the value's keys are names chosen by the author, not keywords of JSON Schema.
        """
        self._seen += 1
        if self._seen > MAX_NODES:
            raise TextError(f"more than {MAX_NODES:,} values; aliases count as often as they are used")
        if id(node) in inside:
            raise TextError(f"{_line(node)}: an anchor that is used inside itself")
        if depth > MAX_DEPTH:
            raise TextError(f"{_line(node)}: nested more than {MAX_DEPTH} levels deep")
        around = (*inside, id(node))
        if isinstance(node, MappingNode):
            self._keys(node)
            for key, value in node.value:
                merged, keyword = key.tag == _MERGE, None if named or exact else key.value
                self.check(
                    value,
                    depth + 1,
                    around,
                    exact=exact or keyword in _EXACT,
                    named=named if merged else keyword in _NAMED,
                )
        elif isinstance(node, SequenceNode):
            for item in node.value:
                self.check(item, depth + 1, around, exact=exact, named=named)
        elif isinstance(node, ScalarNode) and node.style is None and node.tag != _TEXT:
            _check_written(node, exact=exact)

    @staticmethod
    def _keys(node: MappingNode) -> None:
        names: dict[str, Node] = {}
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if key.tag != _TEXT:
                if not isinstance(key, ScalarNode):
                    raise TextError(
                        f"{_line(key)}: a key that is a list or a mapping; text that begins with a bracket needs quotes"
                    )
                raise TextError(f'{_line(key)}: the key {key.value} is not text in YAML; write "{key.value}" in quotes')
            if key.value in names:
                raise TextError(f"{_line(key)}: `{key.value}` is set twice, first in {_line(names[key.value])}")
            names[key.value] = key


def _check_written(node: ScalarNode, *, exact: bool) -> None:
    """Raise TextError for an unquoted scalar that YAML reads differently from its author."""
    text, number = node.value, node.tag.endswith((":int", ":float"))
    if node.tag.endswith(":int") and len(text) > MAX_INT_CHARS:
        raise TextError(f"{_line(node)}: a whole number of {len(text):,} characters; write {MAX_INT_CHARS:,} at most")
    if (exact and not _AS_JSON.fullmatch(text)) or (number and _MISREAD.fullmatch(text)):
        value = "true or false" if node.tag.endswith(":bool") else "the value as JSON writes it"
        raise TextError(
            f'{_line(node)}: {text or "nothing"} is not text in YAML; write "{text}" for the text, or {value}'
        )
    if node.tag.endswith(":float"):
        _check_number(node)


def _check_number(node: ScalarNode) -> None:
    text = node.value.replace("_", "").lower()
    if text.lstrip("+-") in (".inf", ".nan") or (":" not in text and not math.isfinite(float(text))):
        raise TextError(
            f'{_line(node)}: {node.value} is not a number that a spec can hold; write "{node.value}" for the text'
        )


def _line(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"
