"""Only the `show` modules print; a long command shows its progress on standard error."""

import ast
from pathlib import Path

import pytest
from support.parsed import parsed

import magbatch.cli
from magbatch.cli.show import counter, say_next

CLI = Path(magbatch.cli.__file__).parent


def test_a_long_command_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show = counter("objects checked", every_s=0)
    show(1200, 40000)
    counter("objects checked", every_s=3600)(2, 3)  # a short one says nothing
    assert capsys.readouterr() == ("", "1,200 of 40,000 objects checked\n")


def test_only_the_show_modules_print() -> None:
    printing = set[str]()
    for path in CLI.glob("*.py"):
        calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id == "print" for call in calls):
            printing.add(path.stem)
    # app prints the version, and what is left to say when a command has crashed.
    assert printing == {"app", "show"}


def test_the_next_command_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_next("magbatch verify out")
    assert capsys.readouterr() == ("Next: magbatch verify out\n", "")
