"""Commands that are shown can be pasted: they begin as the user's own did, and touch no environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from magbatch.cli.command_line import again, command, with_prefix

ROOT = Path(__file__).parents[3]


def test_a_command_quotes_its_words() -> None:
    assert command("verify", "out/my job") == "magbatch verify 'out/my job'"


def test_under_uv_run_a_command_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert command("status", "out/x") == "uv run --no-sync magbatch status out/x"
    assert again("run", "a.yaml", ["sampling.n=2"], 9).startswith("uv run --no-sync magbatch run a.yaml --set ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("damaged; see: magbatch verify out", "damaged; see: uv run --no-sync magbatch verify out"),
        ("first: magbatch run SPEC", "first: uv run --no-sync magbatch run SPEC"),
        ("magbatch runs checkpoints in Mistral's format", "magbatch runs checkpoints in Mistral's format"),
        ("image example.org/magbatch run by nobody", "image example.org/magbatch run by nobody"),
    ],
)
def test_commands_in_messages_begin_as_the_users_own(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert with_prefix(text) == shown


DAILY = """
name: daily
model: {{source: builtin:tiny, engine: fake}}
input: {{path: "{folder}/in", columns: {{prompt: question}}}}
output: {{path: "{folder}/out"}}
schedule: {{cron: "0 6 * * *"}}
"""


def test_a_refused_command_names_the_next_one_as_it_can_be_pasted(tmp_path: Path) -> None:
    """The script of an environment that is not on PATH, and `uv run`'s variable: as a shell would start them."""
    script = tmp_path / "bin dir" / "magbatch"
    script.parent.mkdir()
    # As pip writes it: a shell's line that Python reads as a string, for interpreters whose path has a blank.
    shell = f"#!/bin/sh\n'''exec' '{sys.executable}' \"$0\" \"$@\"\n' '''\n"
    script.write_text(shell + "from magbatch.__main__ import main\nmain()\n", encoding="utf-8")
    script.chmod(0o755)
    plain = {**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    (tmp_path / "daily.yaml").write_text(DAILY.format(folder=tmp_path), encoding="utf-8")
    for extra, prefix in (({}, f"'{script}'"), ({"UV_RUN_RECURSION_DEPTH": "1"}, "uv run --no-sync magbatch")):
        done = subprocess.run(
            [script, "schedule", "list", str(tmp_path)], env=plain | extra, capture_output=True, text=True, check=False
        )
        assert f"Next: {prefix} schedule run {tmp_path}" in done.stdout, done.stdout + done.stderr
