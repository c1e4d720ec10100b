"""Jinja2 for prompt templates: a template is parsed, described and filled.

A name in a template is a column of the row. A dot reads a field of a struct, and never a method: a method is only
called, not shown. Nothing is computed while a template is parsed.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import TrackingCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from jinja2.visitor import NodeTransformer

from magbatch.errors import ErrorCode, RowError, SpecError

MAX_LISTED_FIELDS = 10  # fields listed in the message for an unknown field
# Prefix of called names while a template is parsed. A called name is a method or one of Jinja's own functions; any
# other name is a column or a field. No column has this prefix.
_CALLED = "magbatch_called__"
# Work of these nodes and filters is proportional to the row's bytes.
_LINEAR = (
    *(nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem),
    *(nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.Test, nodes.Not, nodes.And, nodes.Or),
)
_LINEAR_FILTERS = frozenset({"trim", "upper", "lower", "title", "capitalize", "default", "d", "string", "int", "float"})


class _Missing(jinja2.StrictUndefined):
    """A column or field that the row does not have. The message lists the fields that exist."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
    ) -> None:
        if hint is None and obj is missing:  # every name of a checked template is a column
            hint = f"{name!r} is null in this row; write {{{{ {name} | default('') }}}} if it may be null"
        elif hint is None and isinstance(obj, Mapping):
            fields = ", ".join(map(repr, islice(obj, MAX_LISTED_FIELDS)))
            hint = f"{name!r} is not a field of a value that has {fields}" if fields else None
        super().__init__(hint, obj, name, exc)


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, changed so that fields of a row win over attributes of Python objects."""

    def __init__(self) -> None:
        super().__init__(
            undefined=_Missing,
            autoescape=False,
            keep_trailing_newline=True,
            optimized=False,  # the optimizer would compute constants such as 9 ** 9 ** 9 while parsing
            finalize=_shown,
        )
        self.globals = {f"{_CALLED}{name}": value for name, value in self.globals.items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Evaluate `obj.attribute`: a field of a struct, else an attribute. A method is found only if it is called."""
        if attribute.startswith(_CALLED):
            return super().getattr(obj, attribute.removeprefix(_CALLED))
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Evaluate `obj[argument]` by the rules of `getattr`."""
        if isinstance(obj, Mapping):
            try:
                return obj[argument]
            except (KeyError, TypeError):
                return self.undefined(obj=obj, name=argument)
        found = super().getitem(obj, argument)
        if isinstance(found, jinja2.Undefined):  # callable too, and already has its message
            return found
        return self.undefined(obj=obj, name=argument) if callable(found) else found


class _Marked(NodeTransformer):
    """Adds the prefix to every name that a template calls.

    Args:
        functions: Names of Jinja's own functions that the template does not redefine.
    """

    def __init__(self, functions: frozenset[str]) -> None:
        self._functions = functions

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        """See `NodeTransformer`."""
        target = node.node
        if isinstance(target, nodes.Getattr):
            target.attr = f"{_CALLED}{target.attr}"
        elif isinstance(target, nodes.Name) and target.name in self._functions:
            target.name = f"{_CALLED}{target.name}"
        return self.generic_visit(node)


@jinja2.pass_context  # a function that needs a context is not called while parsing
def _shown(_context: Context, value: Any) -> Any:
    """The value that `{{ value }}` shows."""
    if isinstance(value, bytes):  # a text column that its Parquet file does not declare as text
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RowError(
                ErrorCode.ROW_UNREADABLE, f"prompt.template shows bytes that are not text: {error}"
            ) from error
    if isinstance(value, jinja2.Undefined):
        return value  # raises its own error when it is shown
    if isinstance(value, Iterator) or callable(value) or type(value).__module__.startswith("jinja2."):
        raise TypeError(
            f"shows a {type(value).__name__}, which is not a value; show a sequence with `| list` or `| join`"
        )
    return value


def parsed(template: str) -> tuple[Environment, nodes.Template]:
    """Parse a template.

    Raises:
        SpecError: The template does not parse.
    """
    environment = Environment()
    functions = {name.removeprefix(_CALLED) for name in environment.globals}
    try:
        tree = environment.parse(template)
        functions -= {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        functions -= {macro.name for macro in tree.find_all(nodes.Macro)}
        tree = _Marked(frozenset(functions)).visit(tree)
        row_names(environment, tree)
    except jinja2.TemplateSyntaxError as error:
        raise SpecError(f"prompt.template: line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise SpecError("prompt.template: nested too deeply; simplify the template") from error
    return environment, tree


def row_names(environment: Environment, tree: nodes.Template) -> set[str]:
    """Names that a template takes from its row.

    Raises:
        jinja2.TemplateSyntaxError: A filter or a test is unknown.
    """
    generator = TrackingCodeGenerator(environment)
    generator.optimizer = None  # would compute constants here
    generator.visit(tree)
    return generator.undeclared_identifiers


def leading_name(tree: nodes.Template, columns: set[str]) -> str | None:
    """First column in a template's output; None if several columns decide the beginning.

    Args:
        tree: The parsed template.
        columns: Names that the template takes from its row.

    Example:
        "Order: {{ order }}, {{ date }}" -> "order"
        "{{ a ~ b }}" -> None
    """
    for node in tree.body:
        shown = node.nodes if isinstance(node, nodes.Output) else [node]
        for part in shown:
            names = {name.name for name in [part, *part.find_all(nodes.Name)] if isinstance(name, nodes.Name)}
            if not names and not isinstance(part, nodes.TemplateData | nodes.Const):
                return None  # an included template or a call may begin with anything
            if names:
                (name, *more) = names
                plain = isinstance(part, nodes.Expr | nodes.If | nodes.For)
                return name if plain and not more and name in columns else None
    return None


def fixed_texts(tree: nodes.Template) -> list[str]:
    """Texts that a template shows for every row, in order. Texts inside an if or a loop are left out."""
    shown = [part for node in tree.body if isinstance(node, nodes.Output) for part in node.nodes]
    return [part.data for part in shown if isinstance(part, nodes.TemplateData)]


def is_linear(tree: nodes.Template) -> bool:
    """Whether the work for a row is proportional to the row's bytes: no loop, call or arithmetic."""
    return all(
        isinstance(node, _LINEAR) or (isinstance(node, nodes.Filter) and node.name in _LINEAR_FILTERS)
        for node in tree.find_all(nodes.Node)
    )


def compiled(environment: Environment, tree: nodes.Template) -> jinja2.Template:
    """A template that can be filled."""
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def filled(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """Fill a template.

    Args:
        template: The compiled template.
        values: The row's values by column; null columns are left out.

    Raises:
        RowError: `template_error`, or `row_unreadable` if shown bytes are not text.
    """
    try:
        return template.render(values)
    except (RowError, MemoryError):
        raise
    except jinja2.UndefinedError as error:
        raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {error}") from error
    except Exception as error:  # a template is a program: its exceptions are the row's error
        raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {type(error).__name__}: {error}") from error
