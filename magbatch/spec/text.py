"""YAML text -> plain values, or one message that names the line.

A spec is small, and says each thing once. What YAML allows beyond that is a slip or an attack: a key that stands twice,
a key or a number that JSON has no word for, an anchor inside itself, aliases that multiply.
"""

import math
import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_NODES = 50_000  # values of a spec, aliases counted as often as they are used
MAX_DEPTH = 100  # of values within values
MAX_INT_CHARS = 1000  # of a whole number, also in base 16: Python writes none of more than 4300 digits
# Their keys are names that a schema's author chose, and no keywords.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_EXACT = ("enum", "const")  # the values below them are compared with answers, as they are
_AS_JSON = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.([0-9]*[1-9]|0))?([eE][-+]?[0-9]+)?")
# 12:30 is 750 to YAML, and 0123 is 83.
_MISREAD = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?0[0-7_]+")
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
        raise TextError(f"not YAML: {error}") from error
    except ValueError as error:  # what looks like a date or a number and is none
        raise TextError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise TextError(f"nested more than {MAX_DEPTH} levels deep") from error


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
