"""YAML text becomes plain values, or one message that names the line of the mistake."""

import datetime as dt

import pytest

from magbatch.errors import SpecError, TextError
from magbatch.spec import parse
from magbatch.spec.text import values

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 30)}], {name}: 1}}\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


def test_plain_values_come_as_they_are() -> None:
    text = 'b: [x, 1.5, null, "yes"]\nc: {d: 2026-11-30, "on": off}\nbase: &base {e: 1}\nmore: {<<: *base, f: 1_000}\n'
    found = values(text)
    assert found["c"] == {"d": dt.date(2026, 11, 30), "on": False}
    assert found["more"]["e"] == 1
    assert values("") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: `a` is set twice, first in line 1"),
        ("a: {b: 1, b: 1}", "line 1: `b` is set twice, first in line 1"),
        ("a:\n  on: 1\n", 'line 2: the key on is not text in YAML; write "on" in quotes'),
        ("2026: x", 'the key 2026 is not text in YAML; write "2026" in quotes'),
        ("~: x", "the key ~ is not text"),
        ("? [a]\n: x", "a key that is a list or a mapping"),
        ("a: 1\nb: 1:20.5", 'line 2: 1:20.5 is not text in YAML; write "1:20.5" for the text'),
        ("a: 12:30", "12:30 is not text in YAML"),
        ("a: -0123", "-0123 is not text in YAML"),
        ("a: .inf", "line 1: .inf is not a number that a spec can hold"),
        ("a: [1, -.INF]", "-.INF is not a number"),
        ("a: .nan", ".nan is not a number"),
        ("a: 1.0e+999", "1.0e+999 is not a number"),
        (f"a: 0x{'f' * 4000}", "line 1: a whole number of 4,002 characters"),
        (f"a: [0b{'1' * 20000}]", "line 1: a whole number of 20,002 characters"),
        ("a: &a {b: *a}", "line 1: an anchor that is used inside itself"),
        ("a: &a [x, *a]", "an anchor that is used inside itself"),
        (BOMB, "more than 50,000 values"),
        (MERGES, "more than 50,000 values"),
        ("[" * 2000 + "]" * 2000, "nested more than 100 levels deep"),
        ("a: " + "[" * 101 + "]" * 101, "nested more than 100 levels deep"),
        ("a: 2026-13-45", "not YAML: month must be in 1..12"),
        (
            "a: [",
            "not YAML: line 1, column 5: expected the node content, but found '<stream end>'; a bracket",
        ),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (
            "a: 1\n---\nb: 2",
            "not YAML: line 2, column 1: expected a single document in the stream, but found another document",
        ),
        ("a: \x00", "not YAML: the character U+0000 at position 3"),
        ("a:\n\tb: 1", "line 2, column 1: found character '\\t' that cannot start any token; indent with spaces"),
        ("a: b: c", "text that holds `: ` needs quotes"),
    ],
)
def test_forbidden_yaml_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(TextError) as caught:
        values(text)
    assert said in str(caught.value)


def test_a_spec_says_the_same_with_its_name() -> None:
    with pytest.raises(SpecError, match=r"job\.yaml: line 2: `name` is set twice"):
        parse("name: a\nname: b\n", origin="job.yaml")
    with pytest.raises(SpecError, match=r"--set limits=\{a: 1, a: 2\}: .*`a` is set twice"):
        parse("name: a\n", ["limits={a: 1, a: 2}"])
