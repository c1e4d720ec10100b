"""A template is described without being filled: nothing is computed, and only Jinja's own file is needed."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from magbatch.errors import RowError
from magbatch.spec.jinja import compiled, filled, fixed_texts, is_linear, leading_name, parsed, row_names


@pytest.mark.parametrize(
    ("template", "linear"),
    [
        ("{{ a }} and {{ b.c[0] }}", True),
        ("{% if a == 'x' and b is defined %}{{ a | upper }}{% else %}{{ b | default('') }}{% endif %}", True),
        ("{% for i in a %}{{ i }}{% endfor %}", False),
        ("{{ a + b }}", False),
        ("{{ a.strip() }}", False),
        ("{{ a | replace('x', 'y') }}", False),
    ],
)
def test_linear_templates_are_told_from_programs(template: str, linear: bool) -> None:
    assert is_linear(parsed(template)[1]) is linear


@pytest.mark.parametrize(
    ("template", "texts"),
    [("Read: {{ a }}. Answer.", ["Read: ", ". Answer."]), ("{% if a %}no{% endif %}yes", ["yes"]), ("{{ a }}", [])],
)
def test_the_texts_of_every_row_are_known(template: str, texts: list[str]) -> None:
    assert fixed_texts(parsed(template)[1]) == texts


def test_a_template_names_its_columns_and_the_first_of_them() -> None:
    environment, tree = parsed("Order: {{ order }}, {% set x = 1 %}{{ x }}{{ range(date) }}")
    assert row_names(environment, tree) == {"order", "date"}
    assert leading_name(tree, {"order", "date"}) == "order"
    assert leading_name(parsed("{{ a ~ b }}")[1], {"a", "b"}) is None


def test_nothing_is_computed_while_a_template_is_parsed() -> None:
    environment, tree = parsed("{{ 9 ** 9 ** 9 }}{{ 'x' * 10 ** 12 }}")
    assert row_names(environment, tree) == set()


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{{ a.b }}\n", {"a": {"b": 1}}, "1\n"),
        ("{{ a.items }}", {"a": {"items": "field"}}, "field"),
        ("{{ a }}", {"a": "é".encode()}, "é"),
        ("<{{ a }}>", {"a": "<b>"}, "<<b>>"),
    ],
)
def test_a_template_is_filled(template: str, values: Mapping[str, object], text: str) -> None:
    assert filled(compiled(*parsed(template)), values) == text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ b }}", "'b' is null in this row; write {{ b | default('') }} if it may be null"),
        ("{{ a.c }}", "'c' is not a field of a value that has 'b'"),
        ("{{ a.b.c }}", "has no attribute 'c'"),
    ],
)
def test_missing_columns_and_fields_are_named(template: str, said: str) -> None:
    with pytest.raises(RowError) as caught:
        filled(compiled(*parsed(template)), {"a": {"b": 1}})
    assert said in caught.value.message


def test_a_spec_is_loaded_without_jinja() -> None:
    script = (
        "import sys, magbatch.spec, magbatch.spec.columns; sys.exit(any(name in sys.modules for name in ('jinja2',)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
