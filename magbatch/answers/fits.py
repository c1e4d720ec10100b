"""The check of an answer's value against its JSON Schema, by the rules of the grammar that constrained the answer.

Numbers are compared as decimals. Patterns are matched by the engine's own library (llguidance), in time linear in the
text. Python's `re` defines `\\w`, `\\d` and `$` differently, and its time has no bound.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry

from magbatch.answers.exact import Number
from magbatch.answers.formats import format_checker

MAX_NAME_CHARS = 80  # characters of a property's name in a message


class Pattern:
    """A `pattern` of JSON Schema: a regular expression that may match anywhere in a text.

    Args:
        pattern: Expression in the syntax of JSON Schema (ECMA-262).

    Raises:
        ValueError: The grammar's library does not support the expression.
    """

    def __init__(self, pattern: str) -> None:
        import llguidance

        schema = {"type": "string", "pattern": pattern}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        self._matcher = llguidance.LLMatcher(_bytes_as_tokens(), grammar, log_level=0)
        if self._matcher.is_error():
            raise ValueError(f"the pattern {pattern!r} is not supported by the engine's grammar")

    def __call__(self, text: str) -> bool:
        """Whether the expression matches anywhere in a text."""
        # The grammar's own spelling of a string: DEL is escaped in addition to JSON's own escapes.
        data = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
        self._matcher.reset()
        return self._matcher.try_consume_tokens(list(data)) == len(data) and self._matcher.is_accepting()


@cache
def _bytes_as_tokens() -> Any:
    import llguidance

    return llguidance.LLTokenizer("byte")


_pattern = cache(Pattern)  # few entries: patterns come from the job's schema


def _holds(pattern: str, text: str) -> bool:
    try:
        return _pattern(pattern)(text)
    except ValueError as error:
        raise ValidationError(str(error)) from error


def _is_integer(checker: Any, value: object) -> bool:
    if isinstance(value, Number):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _holds(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        for pattern, part in patterns.items():
            for name, item in value.items():
                if _holds(pattern, name):
                    yield from validator.descend(item, part, path=name, schema_path=pattern)


def _check_additional_properties(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, item in value.items():
        if name in named or any(_holds(pattern, name) for pattern in patterns):
            continue
        if rule is False:
            yield ValidationError(f"the property {name[:MAX_NAME_CHARS]!r} is not in the schema")
        else:
            yield from validator.descend(item, rule, path=name)


def _check_multiple(validator: Any, divisor: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "number") and (Fraction(value) / Fraction(divisor)).denominator != 1:
        yield ValidationError(f"{value!r} is not a multiple of {divisor!r}")


_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        "pattern": _check_pattern,
        "patternProperties": _check_pattern_properties,
        "additionalProperties": _check_additional_properties,
        "multipleOf": _check_multiple,
    },
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


def fits(schema: dict[str, Any]) -> Callable[[Any], str | None]:
    """Compile a schema into a check.

    References are resolved inside the schema only; nothing is fetched.

    Returns:
        Function from a value of `read_json` to the reason why it does not fit; None if it fits.
    """
    validator = _Validator(_exact(schema), format_checker=format_checker(), registry=Registry())

    def find(value: Any) -> str | None:
        wrong = best_match(validator.iter_errors(value))
        return f"{wrong.json_path}: {wrong.message}" if wrong is not None else None

    return find


def _exact(node: Any) -> Any:
    """Copy of a schema with exact decimals: the float 19.99 is not exactly 19.99."""
    if isinstance(node, dict):
        return {name: _exact(part) for name, part in node.items()}
    if isinstance(node, list):
        return [_exact(part) for part in node]
    return Number(repr(node)) if isinstance(node, float) else node
