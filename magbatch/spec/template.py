"""A job's prompt template: the columns that it uses, and its text for one row.

Filling a template is bounded in time and memory, whatever the template and the row contain. A template that only
shows, compares and tests values is filled in this process: its work is proportional to the row's bytes. Any other
template is a program, and runs in a sandbox. Jinja2 is loaded at first use.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from magbatch.errors import ErrorCode, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError
from magbatch.sandbox import Handler, Replies, Sandboxes

TIMEOUT_S = 10.0  # time limit of one row; a template that shows whole documents takes milliseconds
MEMORY_MB = 1024  # memory limit of one row; a prompt of a million tokens takes 20 MB
SANDBOXES = 2  # one slow row does not block the other rows


def template_columns(template: str) -> set[str]:
    """Names that a template takes from its row. All of them must be input columns.

    Raises:
        SpecError: The template does not parse.
    """
    from magbatch.spec import jinja

    return jinja.row_names(*jinja.parsed(template))


def leading_column(template: str) -> str | None:
    """First column in a template's output, after fixed text; None if several columns decide the beginning.

    Raises:
        SpecError: The template does not parse.
    """
    from magbatch.spec import jinja

    environment, tree = jinja.parsed(template)
    return jinja.leading_name(tree, jinja.row_names(environment, tree))


def fixed_texts(template: str) -> list[str]:
    """Texts that a template shows for every row, in order. Texts inside an if or a loop are left out.

    Raises:
        SpecError: The template does not parse.
    """
    from magbatch.spec import jinja

    return jinja.fixed_texts(jinja.parsed(template)[1])


class Template:
    """A template that is filled for rows.

    Args:
        template: The template's text.
        timeout_s: Time limit of one row, in seconds, if the template is not linear.

    Raises:
        SpecError: The template does not parse.
    """

    def __init__(self, template: str, timeout_s: float = TIMEOUT_S) -> None:
        from magbatch.spec import jinja

        environment, tree = jinja.parsed(template)
        self._timeout_s = timeout_s
        self._here: Callable[[Mapping[str, Any]], str] | None = None
        if jinja.is_linear(tree):
            compiled = jinja.compiled(environment, tree)
            self._here = lambda values: jinja.filled(compiled, values)
        self._sandboxes = Sandboxes(
            SANDBOXES, f"{__name__}:handler", {"template": template}, timeout_s=timeout_s, memory_mb=MEMORY_MB
        )

    def __call__(self, values: Mapping[str, Any]) -> str:
        """The text for one row.

        Args:
            values: The row's values by column; null columns are left out.

        Raises:
            RowError: `template_error`, or `row_unreadable` if shown bytes are not text.
            ClusterError: A sandbox cannot be started on this machine.
        """
        if self._here is not None:
            return self._here(values)
        try:
            (reply,) = self._sandboxes({}, pickle.dumps(dict(values)))
        except SandboxTimeoutError as error:
            raise RowError(
                ErrorCode.TEMPLATE_ERROR, f"prompt.template: not filled within {self._timeout_s:g} s"
            ) from error
        except SandboxMemoryError as error:
            raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: needs more than {MEMORY_MB} MB") from error
        except SandboxError as error:
            raise RowError(ErrorCode.TEMPLATE_ERROR, f"prompt.template: {error}") from error
        return (reply.body or b"").decode(errors="surrogatepass")

    def close(self) -> None:
        """End the sandboxes' processes."""
        self._sandboxes.close()


def handler(setup: dict[str, Any]) -> Handler:
    """Request handler of the sandbox: takes a row's pickled values, replies with its text."""
    from magbatch.spec import jinja

    template = jinja.compiled(*jinja.parsed(setup["template"]))

    def fill(_head: dict[str, Any], values: bytes) -> Replies:
        text = jinja.filled(template, pickle.loads(values))
        yield {}, text.encode(errors="surrogatepass")

    return fill
