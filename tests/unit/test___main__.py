"""`python -m magbatch`: the words that start Ray are commands, so that the guard is on duty for each of them."""

import typer.main

from magbatch.__main__ import STARTS_RAY
from magbatch.cli.app import app


def test_the_words_that_start_ray_are_commands() -> None:
    root = typer.main.get_command(app)
    for words in STARTS_RAY:
        found = root
        for word in words:
            found = found.commands[word]  # type: ignore[attr-defined]
        assert found.callback is not None
