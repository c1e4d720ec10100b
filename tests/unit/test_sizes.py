"""No file, function or class of magbatch is longer than a reader can hold in mind."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "magbatch"
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

FILE_LINES = 400
FUNCTION_LINES = 60  # docstring included: it has up to 25 lines if a function has ten arguments
CLASS_LINES = 240
# Module and name to the reason for its size. Empty: split a function before you write it here.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def lengths(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, lines and limit of each function and class."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1, FUNCTION_LINES
        elif isinstance(node, ast.ClassDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1, CLASS_LINES


def too_long(source: str) -> dict[str, str]:
    return {name: f"{lines} lines, above {most}" for name, lines, most in lengths(source) if lines > most}


@pytest.mark.parametrize("module", MODULES)
def test_files_functions_and_classes_are_short(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= FILE_LINES, "give one of its subjects a file"
    found = too_long(source)
    assert {name: said for name, said in found.items() if (module, name) not in EXCEPTIONS} == {}


def test_every_exception_is_needed() -> None:
    for (module, name), reason in EXCEPTIONS.items():
        assert reason
        assert name in too_long(MODULES[module].read_text(encoding="utf-8")), f"{name} is short: remove its exception"


def test_a_long_function_and_a_long_class_are_seen() -> None:
    body = "    x = 1\n" * FUNCTION_LINES
    assert too_long(f"async def long():\n{body}") == {"long": "61 lines, above 60"}
    assert too_long("class Long:\n" + "    x = 1\n" * CLASS_LINES) == {"Long": "241 lines, above 240"}
    assert too_long(f"def short():\n{body[10:]}") == {}
