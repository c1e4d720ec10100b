"""A template is filled from its row only, within limits of time and memory."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from magbatch.errors import ErrorCode, RowError, SpecError
from magbatch.spec.template import Template, leading_column, template_columns


def filled(template: str, **values: Any) -> str:
    made = Template(template)
    try:
        return made(values)
    finally:
        made.close()


def refusal(template: str, **values: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        filled(template, **values)
    return caught.value


# In a sandbox as here: a loop makes a template a program.
BOTH = pytest.mark.parametrize("program", ["", "{% for x in [] %}{% endfor %}"])


@BOTH
def test_a_field_wins_over_a_method(program: str) -> None:
    order = {"items": 3, "values": "two", "keys": None, "nested": {"get": [1, 2]}}
    assert (
        filled(f"{{{{ order.items }}}} {{{{ order.values }}}} {{{{ order['items'] }}}}{program}", order=order)
        == "3 two 3"
    )
    assert filled(f"{{{{ order.nested.get[1] }}}}{program}", order=order) == "2"


@BOTH
@pytest.mark.parametrize("shown", ["order.items", "order['items']", "order.nested.copy", "name.upper", "rows.append"])
def test_a_method_is_never_shown(program: str, shown: str) -> None:
    error = refusal(f"{{{{ {shown} }}}}{program}", order={"nested": {}}, name="x", rows=[1])
    assert error.code is ErrorCode.TEMPLATE_ERROR
    assert "0x" not in error.message


def test_a_method_can_be_called() -> None:
    order = {"items": 3, "b": 4}
    assert (
        filled("{% for key, value in order.items() %}{{ key }}={{ value }};{% endfor %}", order=order) == "items=3;b=4;"
    )
    assert filled("{{ day.strftime('%d.%m.') }}{{ name.upper() }}", day=dt.date(2026, 11, 29), name="x") == "29.11.X"
    assert filled("{% for x in [1, 2] %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{% endfor %}") == "1a2b"


@BOTH
@pytest.mark.parametrize("name", ["range", "namespace", "dict", "cycler", "joiner", "lipsum", "self", "loop", "values"])
def test_a_column_wins_over_a_name_of_jinja(program: str, name: str) -> None:
    template = f"{{{{ {name} }}}}{program}"
    assert template_columns(template) >= {name} - {"self"}
    if name != "self":  # of blocks, in the language itself
        assert filled(template, **{name: "of the row"}) == "of the row"


def test_functions_of_jinja_can_be_called_in_spite_of_columns_of_their_names() -> None:
    template = "{{ range }}: {% for i in range(3) %}{{ i }}{% endfor %}"
    assert template_columns(template) == {"range"}
    assert filled(template, range="rows") == "rows: 012"
    assert filled("{% set found = namespace(n=0) %}{% set found.n = 2 %}{{ found.n }}{{ dict(a=1).a }}") == "21"
    assert filled("{% macro dict(x) %}<{{ x }}>{% endmacro %}{{ dict(1) }}") == "<1>", "a template's own name"


@pytest.mark.parametrize("shown", ["words | map('upper')", "words | select", "cycler('a')", "joiner(',')", "show"])
def test_functions_and_iterators_are_not_shown(shown: str) -> None:
    error = refusal(f"{{% macro show() %}}{{% endmacro %}}{{{{ {shown} }}}}", words=["a"])
    assert error.code is ErrorCode.TEMPLATE_ERROR
    assert "shows a" in error.message
    assert "0x" not in error.message


@BOTH
def test_values_of_every_type_are_shown_alike(program: str) -> None:
    values = {
        "a": 1.5,
        "b": Decimal("19.90"),
        "c": dt.date(2026, 1, 2),
        "d": [1, None],
        "e": True,
        "f": "\ud800",
        "g": b"ok",
    }
    shown = "|".join(f"{{{{ {name} }}}}" for name in values)
    assert filled(shown + program, **values) == "1.5|19.90|2026-01-02|[1, None]|True|\ud800|ok"
    assert refusal("{{ g }}" + program, g=b"\xff").code is ErrorCode.ROW_UNREADABLE


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
        "{{ n ** n ** n }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ 'x' | center(99999999999) }}",
        "{{ q | replace('', q * 1000) | replace('', q * 1000) | replace('', q * 10000) }}",
        "{{ '%99999999999d' % n }}",
        "{% macro again(x) %}{{ again(x) }}{{ again(x) }}{% endmacro %}{{ again(1) }}",
        "{{ q | center(10 ** 11) }}",
        "{{ [q] * 10 ** 10 }}",
    ],
)
def test_a_template_that_never_ends_fails(template: str) -> None:
    made = Template(template, timeout_s=0.5)
    with pytest.raises(RowError) as caught:
        made({"n": 9999999, "q": "x" * 1000})
    assert caught.value.code is ErrorCode.TEMPLATE_ERROR
    made.close()


def test_a_stuck_row_does_not_affect_the_next_row() -> None:
    made = Template("{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ n }}", timeout_s=0.5)
    assert made({"n": 2}) == "2"
    with pytest.raises(RowError, match=r"not filled within 0\.5 s"):
        made({"n": 99999})
    assert made({"n": 3}) == "3"
    made.close()


@pytest.mark.parametrize(
    "template", ["{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{% if x %}" * 500 + "{% endif %}" * 500]
)
def test_a_template_that_is_too_deep_is_refused(template: str) -> None:
    with pytest.raises(SpecError, match="nested too deeply"):
        template_columns(template)


def test_the_columns_of_a_template_are_its_free_names() -> None:
    assert template_columns("plain") == set()
    assert template_columns("{{ a }}{% if b is defined %}{{ c | default('') }}{% endif %}") == {"a", "b", "c"}
    assert template_columns("{% for x in items %}{{ x.name }}{{ loop.index }}{% endfor %}{% set y = z %}{{ y }}") == {
        "items",
        "z",
    }
    assert template_columns("{% for i in range(3) %}{{ ü }}{% endfor %}") == {"ü"}


@pytest.mark.parametrize(
    "template", ["{{ a", "{% if %}", "{% for x in y %}", "{{ a | no_such_filter }}", "a\n{{ b b }}"]
)
def test_a_template_that_does_not_parse_names_the_field_and_the_line(template: str) -> None:
    with pytest.raises(SpecError) as caught:
        template_columns(template)
    line = 2 if template.startswith("a\n") else 1
    assert str(caught.value).startswith(f"prompt.template: line {line}: ")


@pytest.mark.parametrize(
    ("template", "column"),
    [
        ("{{ document }}\n\n{{ question }}", "document"),
        ("{# a comment #}Read this:\n{{ document | trim }}\n{{ question }}", "document"),
        ("{{ document[:1000] }}{{ question }}", "document"),
        ("{{ 'Read: ' }}{{ document }}", "document"),
        ("{% if document %}{{ document }}{% endif %}{{ question }}", "document"),
        ("{{ question }}\n\n{{ document }}", "question"),
        ("{% if question %}{{ document }}{% endif %}", None),
        ("{{ document ~ question }}", None),
        ("{% set document = question %}{{ document }}", None),
        ("{% for page in pages %}{{ page }}{% endfor %}", None),
        ("{% macro first() %}{{ question }}{% endmacro %}{{ first() }}{{ document }}", None),
        ("{{ range(3) | list }}{{ document }}", None),
        ("plain", None),
    ],
)
def test_the_column_that_a_template_begins_with(template: str, column: str | None) -> None:
    assert leading_column(template) == column
