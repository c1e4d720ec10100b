"""A job's prompt template, filled from a row: bounded in time and memory, whatever the template and the row hold.

A name is the row's column first. A dot reads a field of the row's value, and never a method: those are called or
not shown. A template that only shows, compares and tests values is filled here, for its work is in proportion to the
row's bytes. Every other one is a program, and runs in a sandbox.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import TrackingCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from jinja2.visitor import NodeTransformer

from magbatch.errors import ErrorCode, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError, SpecError
from magbatch.sandbox import Sandboxes

TIMEOUT_S = 10.0  # of one row's template: whole documents take milliseconds
MEMORY_MB = 1024  # the same: a prompt of a million tokens takes 20
MOST_FIELDS_NAMED = 10  # of a value, where a template asks for another
SANDBOXES = 2  # a row that takes all of its time holds up no other
# A call's target is marked while a template is parsed: what is called is a method or Jinja's own function, what is
# not called is a column or a field. No column's name begins like this.
_CALLED = "magbatch_called__"
_LINEAR = (
    *(nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem),
    *(nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.Test, nodes.Not, nodes.And, nodes.Or),
)
_LINEAR_FILTERS = frozenset({"trim", "upper", "lower", "title", "capitalize", "default", "d", "string", "int", "float"})


class _Missing(jinja2.StrictUndefined):
    """What a template asks of a row and the row does not have: the message says what there is instead."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
    ) -> None:
        if hint is None and obj is missing:  # all names of a template are columns
            hint = f"{name!r} is null in this row; write {{{{ {name} | default('') }}}} where it may be"
        elif hint is None and isinstance(obj, Mapping):
            fields = ", ".join(map(repr, islice(obj, MOST_FIELDS_NAMED)))
            hint = f"{name!r} is no field of a value that has {fields}" if fields else None
        super().__init__(hint, obj, name, exc)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which what a row holds comes before what Python's values can do."""

    def __init__(self) -> None:
        super().__init__(
            undefined=_Missing,
            autoescape=False,
            keep_trailing_newline=True,
            optimized=False,  # a constant such as 9 ** 9 ** 9 is not worked out while the template is read
            finalize=_shown,
        )
        self.globals = {f"{_CALLED}{name}": value for name, value in self.globals.items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: a field of a struct; else an attribute that is no method, unless it is called."""
        if attribute.startswith(_CALLED):
            return super().getattr(obj, attribute.removeprefix(_CALLED))
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`: as `getattr`, for any argument."""
        if isinstance(obj, Mapping):
            try:
                return obj[argument]
            except (KeyError, TypeError):
                return self.undefined(obj=obj, name=argument)
        found = super().getitem(obj, argument)
        if isinstance(found, jinja2.Undefined):  # which is callable too, and says why
            return found
        return self.undefined(obj=obj, name=argument) if callable(found) else found


class _Marked(NodeTransformer):
    """Marks what a template calls.

    Args:
        functions: The names that are Jinja's own functions.
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


@jinja2.pass_context  # of a context: so Jinja works nothing out before there is one
def _shown(_context: Context, value: Any) -> Any:
    """What `{{ value }}` shows."""
    if isinstance(value, bytes):  # text that its file does not call text
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RowError(
                ErrorCode.ROW_UNREADABLE, f"prompt.template shows bytes that are no text: {error}"
            ) from error
    if isinstance(value, jinja2.Undefined):
        return value  # which says so itself
    if isinstance(value, Iterator) or callable(value) or type(value).__module__.startswith("jinja2."):
        raise TypeError(
            f"shows a {type(value).__name__}, which is no value; a sequence is shown by `| list` or `| join`"
        )
    return value


def _names(environment: _Environment, tree: nodes.Template) -> set[str]:
    """The names that a template takes from its row; raises TemplateSyntaxError for unknown filters and tests."""
    generator = TrackingCodeGenerator(environment)
    generator.optimizer = None  # which would work out constants here
    generator.visit(tree)
    return generator.undeclared_identifiers


def _parsed(template: str) -> tuple[_Environment, nodes.Template]:
    environment = _Environment()
    functions = {name.removeprefix(_CALLED) for name in environment.globals}
    try:
        tree = environment.parse(template)
        functions -= {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        functions -= {macro.name for macro in tree.find_all(nodes.Macro)}
        tree = _Marked(frozenset(functions)).visit(tree)
        _names(environment, tree)
    except jinja2.TemplateSyntaxError as error:
        raise SpecError(f"prompt.template: line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise SpecError("prompt.template: nested too deeply to be read") from error
    return environment, tree


def template_columns(template: str) -> set[str]:
    """The names that a template uses: all must be input columns.

    Raises:
        SpecError: The template does not parse, or calls a name that is a column elsewhere in it.
    """
    environment, tree = _parsed(template)
    return _names(environment, tree)


def leading_column(template: str) -> str | None:
    """The column that a template's output begins with, but for fixed text; None where that depends on several.

    Raises:
        SpecError: The template does not parse.
    """
    columns = template_columns(template)
    for node in _parsed(template)[1].body:
        shown = node.nodes if isinstance(node, nodes.Output) else [node]
        for part in shown:
            names = {name.name for name in [part, *part.find_all(nodes.Name)] if isinstance(name, nodes.Name)}
            if not names and not isinstance(part, nodes.TemplateData | nodes.Const):
                return None  # what is included, or called, may begin with anything
            if names:
                (name, *others) = names
                plain = isinstance(part, nodes.Expr | nodes.If | nodes.For)
                return name if plain and not others and name in columns else None
    return None


def fixed_texts(template: str) -> list[str]:
    """The texts that a template shows for every row, in their order: none that stands in an if or a loop.

    Raises:
        SpecError: The template does not parse.
    """
    shown = [part for node in _parsed(template)[1].body if isinstance(node, nodes.Output) for part in node.nodes]
    return [part.data for part in shown if isinstance(part, nodes.TemplateData)]


class Template:
    """A template that is filled for rows.

    Args:
        template: Its text.

    Raises:
        SpecError: It does not parse.
    """

    def __init__(self, template: str) -> None:
        environment, tree = _parsed(template)
        self._here = _compiled(environment, tree) if _is_linear(tree) else None
        self._sandboxes = Sandboxes(
            SANDBOXES,
            "magbatch.spec.template:handler",
            {"template": template},
            timeout_s=TIMEOUT_S,
            memory_mb=MEMORY_MB,
        )

    def __call__(self, values: Mapping[str, Any]) -> str:
        """The text for one row.

        Args:
            values: The row's values by column; a null has none.

        Raises:
            RowError: `template_error`, or `row_unreadable` for bytes that are no text.
            ClusterError: A sandbox cannot be started here.
        """
        if self._here is not None:
            return _filled(self._here, values)
        try:
            (reply,) = self._sandboxes({}, pickle.dumps(dict(values)))
        except SandboxTimeoutError as error:
            raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: not filled within {TIMEOUT_S:g} s") from error
        except SandboxMemoryError as error:
            raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: needs more than {MEMORY_MB} MB") from error
        except SandboxError as error:
            raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {error}") from error
        return (reply.body or b"").decode(errors="surrogatepass")

    def close(self) -> None:
        """End the sandboxes' processes."""
        self._sandboxes.close()


def handler(setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Iterator[tuple[dict[str, Any], bytes | None]]]:
    """In a sandbox: a row's values in, its text out."""
    template = _compiled(*_parsed(setup["template"]))

    def fill(_head: dict[str, Any], values: bytes) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        text = _filled(template, pickle.loads(values))
        yield {}, text.encode(errors="surrogatepass")

    return fill


def _is_linear(tree: nodes.Template) -> bool:
    """Whether the work for a row is in proportion to the row's bytes: no loop, call or arithmetic."""
    return all(
        isinstance(node, _LINEAR) or (isinstance(node, nodes.Filter) and node.name in _LINEAR_FILTERS)
        for node in tree.find_all(nodes.Node)
    )


def _compiled(environment: _Environment, tree: nodes.Template) -> jinja2.Template:
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _filled(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    try:
        return template.render(values)
    except (RowError, MemoryError):
        raise
    except jinja2.UndefinedError as error:
        raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {error}") from error
    except Exception as error:  # a template is a program: whatever it raises is this row's error
        raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {type(error).__name__}: {error}") from error
