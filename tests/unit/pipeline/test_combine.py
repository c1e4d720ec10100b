"""Answers about page groups become one prompt, or fewer prompts than before, and nothing is left out untold."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.chat import ChatEncoder
from magbatch.pipeline.combine import Combiner
from magbatch.pipeline.page_chat import PageChat
from magbatch.rows import PageGroup, PageGroupAnswer, Prompt, ReasoningStatus, as_ids
from magbatch.spec import JobSpec

ASKED = [{"role": "user", "content": [{"text": "What?"}]}]
Make = Callable[..., Combiner]


@pytest.fixture
def make(make_spec: Callable[..., JobSpec], checkpoint: Path, tokenizer: Tokenizer) -> Make:
    def act(limit: int = 400) -> Combiner:
        spec = make_spec(prompt={"system": "none"}, limits={"max_prompt_tokens": limit})
        chat = ChatEncoder(spec, checkpoint, tokenizer, 9000)
        return Combiner(chat, PageChat(chat))

    return act


def page_groups(total: int = 9) -> Prompt:
    return Prompt("r", as_ids(), [], total, [PageGroup(1, 5, as_ids([1])), PageGroup(6, 9, as_ids([1]))], ASKED)


def test_answers_of_page_groups_become_one_prompt(make: Make, tokenizer: Tokenizer) -> None:
    findings = [
        PageGroupAnswer(1, 5, answer="five items"),
        PageGroupAnswer(6, 9, None, ReasoningStatus.TRUNCATED, None),
    ]
    (group,) = make()(page_groups(), findings)
    assert tokenizer.show(group.token_ids) == (
        "<s>[INST]A document of 9 pages was read in parts, and each part was asked the question below. What they "
        "answered:\n\nPages 1 to 5:\nfive items\n\nPages 6 to 9:\n(no answer about these pages)\n\nNow answer for the "
        "whole document.\n\nWhat?[/INST]"
    )
    assert (group.first_page, group.last_page) == (1, 9)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("word \n数", max_size=3000), min_size=2, max_size=30))
def test_answers_that_do_not_fit_are_combined_into_ever_fewer(make: Make, answers: list[str]) -> None:
    combine = make(500)
    findings = [PageGroupAnswer(number, number, answer=answer) for number, answer in enumerate(answers, start=1)]
    while True:
        groups = combine(page_groups(len(answers)), findings)
        assert all(len(group.token_ids) <= 500 for group in groups)
        assert (groups[0].first_page, groups[-1].last_page) == (1, len(answers))
        if len(groups) == 1:
            break
        assert len(groups) < len(findings)
        findings = [PageGroupAnswer(group.first_page, group.last_page, answer="word " * 500) for group in groups]


def test_an_answer_that_is_cut_is_told(make: Make) -> None:
    findings = [PageGroupAnswer(number, number, answer="word " * (900 if number == 3 else 1)) for number in range(1, 5)]
    groups = make()(page_groups(4), findings)
    assert [group.truncated for group in groups if group.first_page <= 3 <= group.last_page] == [True]
    assert sum(group.truncated for group in groups) == 1
    assert not any(group.truncated for group in make()(page_groups(4), findings[:2]))
