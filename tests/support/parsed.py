"""Source files as syntax trees, each parsed once in a process."""

import ast
import functools
from pathlib import Path


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Syntax tree of a Python file; it must not be changed.

    Python 3.11 sometimes fails with SystemError if the garbage collector runs while a tree is made (gh-106905). The
    second try succeeds.
    """
    source = path.read_text(encoding="utf-8")
    try:
        return ast.parse(source)
    except SystemError:
        return ast.parse(source)
