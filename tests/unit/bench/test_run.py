"""`magbatch bench`: wrong arguments are refused before an engine starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from magbatch.cli.app import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "suite 'nope' does not exist; write one of text, tail, image, occupancy,"),
        (["text", "--arms", "raw,vllm"], "--arms: arm 'vllm' does not exist; write some of raw, magbatch,"),
        (["text", "--engine-arg", "max_num_seqs"], "--engine-arg max_num_seqs: write name=value"),
        (["text", "--engine-arg", "hf_token=sesame"], "engine_args.hf_token: holds a secret"),
        (["text", "--engine-arg", "a=[1"], "--engine-arg a=[1: the value is not YAML"),
        (["text", "--model", "builtin:big"], "model.source builtin:big: the built-in model is builtin:tiny"),
        (["text", "--keep", "{used}"], "the folder is not empty; name a new one"),
    ],
)
def test_a_wrong_argument_gets_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    asked = [argument.format(used=tmp_path) for argument in arguments]
    done = CliRunner().invoke(app, ["bench", *asked, "--rows", "2"])
    assert done.exit_code == 2
    assert message in done.stderr


def test_plugins_that_are_chosen_by_hand_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    done = CliRunner().invoke(app, ["bench", "text", "--rows", "2"])
    assert (done.exit_code, "VLLM_PLUGINS is set" in done.stderr) == (2, True)
