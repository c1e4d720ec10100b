"""YAML text -> plain values, or one message that names the line.

A spec is small, and says each thing once. What YAML allows beyond that is a slip or an attack: a key that stands twice,
a key or a number that JSON has no word for, an anchor inside itself, aliases that multiply.
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

MAX_NODES = 50_000  # values of a spec, aliases counted as often as they are used
MAX_DEPTH = 100  # of values within values
MAX_INT_CHARS = 1000  # of a whole number, also in base 16: Python writes none of more than 4300 digits
# Their keys are names that a schema's author chose, and no keywords.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_EXACT = ("enum", "const")  # the values below them are compared with answers, as they are
_AS_JSON = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.([0-9]*[1-9]|0))?([eE][-+]?[0-9]+)?")
# 12:30 is 750 to YAML, and 0123 is 83.
_MISREAD = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?0[0-7_]+")
# What YAML's library says, and what a person has mostly done.
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


class TextError(Exception):
    """The text is not what a spec may be; the message says where and what would be right."""


def values(text: str, *, exact: bool = False) -> Any:
    """The values that a YAML text holds: mappings with text for keys, lists, and scalars that are finite.

    Args:
        text: The YAML.
        exact: The text stands below `enum` or `const`.

    Raises:
        TextError: It is no YAML, or more than a spec may hold.
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
    except ValueError as error:  # what looks like a date or a number and is none
        raise TextError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise TextError(f"nested more than {MAX_DEPTH} levels deep") from error


def unquoted(text: str) -> dict[tuple[int | str, ...], str]:
    """The values of a YAML text that stand without quotes and that YAML takes for something else than text.

    Args:
        text: The YAML, which `values` takes.

    Returns:
        Path to the value as it is written, such as {("input", "carry", 0): "no"}.
    """
    found: dict[tuple[int | str, ...], str] = {}

    def look(node: Node | None, place: tuple[int | str, ...]) -> None:
        if isinstance(node, MappingNode):
            for key, value in node.value:
                look(value, (*place, str(key.value)))
        elif isinstance(node, SequenceNode):
            for position, item in enumerate(node.value):
                look(item, (*place, position))
        elif isinstance(node, ScalarNode) and node.style is None and node.tag != _TEXT:
            found[place] = node.value

    look(yaml.SafeLoader(text).get_single_node(), ())
    return found


def file_text(path: str) -> str:
    """The text of a file.

    Raises:
        TextError: It cannot be read; the message does not name the file.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"no UTF-8 text: byte {error.start:,} is {error.object[error.start]:#04x}") from error
    except ValueError as error:  # a null character
        raise TextError("no name of a file") from error
    except OSError as error:
        raise TextError(_why_not(path, error)) from error


def _why_not(path: str, error: OSError) -> str:
    """Why a file cannot be read."""
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
    """One line: where a text is no YAML, and what may be meant."""
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
    """Looks at every value, as often as it is used."""

    def __init__(self) -> None:
        self._seen = 0

    def check(
        self, node: Node, depth: int, inside: tuple[int, ...], *, exact: bool = False, named: bool = False
    ) -> None:
        """Raise TextError for what a spec may not hold.

        Args:
            node: A value.
            depth: Values around it.
            inside: Identities of the values around it.
            exact: It is below `enum` or `const`.
            named: Its keys are names, and no keywords of JSON Schema.
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
                        f"{_line(key)}: a key that is a list or a mapping; text that begins so needs quotes"
                    )
                raise TextError(f'{_line(key)}: the key {key.value} is no text to YAML; write "{key.value}" in quotes')
            if key.value in names:
                raise TextError(f"{_line(key)}: `{key.value}` is set twice, first in {_line(names[key.value])}")
            names[key.value] = key


def _check_written(node: ScalarNode, *, exact: bool) -> None:
    """Raise TextError for a plain scalar that YAML may read as another value than its writer."""
    text, number = node.value, node.tag.endswith((":int", ":float"))
    if node.tag.endswith(":int") and len(text) > MAX_INT_CHARS:
        raise TextError(f"{_line(node)}: a whole number of {len(text):,} characters, and no spec needs one")
    if (exact and not _AS_JSON.fullmatch(text)) or (number and _MISREAD.fullmatch(text)):
        value = "true or false" if node.tag.endswith(":bool") else "the value as JSON writes it"
        raise TextError(
            f'{_line(node)}: {text or "nothing"} is no text to YAML; write "{text}" for the text, or {value}'
        )
    if node.tag.endswith(":float"):
        _check_number(node)


def _check_number(node: ScalarNode) -> None:
    text = node.value.replace("_", "").lower()
    if text.lstrip("+-") in (".inf", ".nan") or (":" not in text and not math.isfinite(float(text))):
        raise TextError(
            f'{_line(node)}: {node.value} is no number that a spec can hold; write "{node.value}" for the text'
        )


def _line(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"
