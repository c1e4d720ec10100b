"""The scripted engine's arguments: what is left out has its default, and a wrong rule is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from magbatch.spec.fake_args import FakeArgs

LEAST = {"max_model_len": 100, "max_num_seqs": 4}


def test_arguments_left_out_have_defaults() -> None:
    args = FakeArgs.model_validate(LEAST)
    assert (args.token_s, args.tokens, args.script, args.journal) == (0.0, 16, [], None)
    (rule,) = FakeArgs.model_validate(LEAST | {"script": [{"contains": "POISON"}]}).script
    assert (rule.do, rule.tokens, rule.answer) == ("answer", None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_num_seqs": 0}, {"token_s": -1}, {"tokens": 0}, {"more": 1}, {"script": [{"do": "die"}]},
        {"script": [{"contains": "x", "do": "explode"}]}, {"script": [{"contains": "x", "more": 1}]},
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FakeArgs.model_validate(LEAST | wrong)


def test_every_argument_is_described() -> None:
    assert all((field.description or "").endswith(".") for field in FakeArgs.model_fields.values())
