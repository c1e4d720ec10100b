"""Thinking and answer are told apart by control tokens, whatever the text says."""

import json
import random
from pathlib import Path

import pytest
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest

from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.parse import Parser
from magbatch.rows import Answer, Completion, ReasoningStatus

COMPLETE, TRUNCATED = ReasoningStatus.COMPLETE, ReasoningStatus.TRUNCATED
ABSENT, MALFORMED = ReasoningStatus.ABSENT, ReasoningStatus.MALFORMED


class Words:
    """Completions from text and the marks `<think>`, `</think>` and `<end>`, which alone are control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.think_open is not None
        assert tokenizer.think_close is not None
        self._marks = {"<think>": [tokenizer.think_open], "</think>": [tokenizer.think_close], "<end>": [2]}
        self._encode = lambda text: tokenizer.encode(ChatCompletionRequest(messages=[UserMessage(content=text)]))[2:-1]

    def ids(self, *parts: str | list[int]) -> list[int]:
        return [
            token
            for part in parts
            for token in (part if isinstance(part, list) else self._marks.get(part) or self._encode(part))
        ]


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> Words:
    return Words(tokenizer)


def parse(tokenizer: Tokenizer, ids: list[int], reason: str = "stop", *, opened: bool = False) -> Answer:
    answer = Parser(tokenizer)(Completion(ids, reason, opened=opened))
    assert answer.finish_reason == reason
    assert answer.reasoning_tokens + answer.answer_tokens == len(ids)
    return answer


# name: parts of the completion, finish reason, then status, reasoning, answer, and the parts that count as reasoning
CASES: dict[str, tuple[list[str], str, ReasoningStatus, str | None, str | None, int]] = {
    "normal": (["<think>", "I add. ", "</think>", "It is 9.", "<end>"], "stop", COMPLETE, "I add.", "It is 9.", 3),
    "cut in the answer": (["<think>", "I add.", "</think>", "It is"], "length", COMPLETE, "I add.", "It is", 3),
    "never closed, out of tokens": (["<think>", "I add"], "length", TRUNCATED, "I add", None, 2),
    "never closed, stopped by itself": (["<think>", "I add.", "<end>"], "stop", MALFORMED, "I add.", None, 3),
    "repeats itself while thinking": (["<think>", "so so so"], "repetition", TRUNCATED, "so so so", None, 2),
    "aborted while thinking": (["<think>", "so"], "abort", TRUNCATED, "so", None, 2),
    "no thinking": (["It is 9.", "<end>"], "stop", ABSENT, None, "It is 9.", 0),
    "no thinking, cut": (["It is"], "length", ABSENT, None, "It is", 0),
    "closed without being opened": (["I add.", "</think>", "9", "<end>"], "stop", MALFORMED, "I add.", "9", 2),
    "opened twice": (["<think>", "a", "<think>", "b", "</think>", "9"], "stop", MALFORMED, "a\n\nb", "9", 5),
    "closed twice": (["<think>", "a", "</think>", "b", "</think>", "9"], "stop", MALFORMED, "a\n\nb", "9", 5),
    "quotes the closing mark": (
        ["<think>", "The text says [/THINK] here.", "</think>", "Yes: [THINK]", "<end>"],
        *("stop", COMPLETE, "The text says [/THINK] here.", "Yes: [THINK]", 3),
    ),
    "quotes the marks without thinking": (["[THINK]x[/THINK]y"], "stop", ABSENT, None, "[THINK]x[/THINK]y", 0),
    "empty answer": (["<think>", "I add.", "</think>", "<end>"], "stop", COMPLETE, "I add.", None, 3),
    "blank answer": (["<think>", "I add.", "</think>", " \n ", "<end>"], "stop", COMPLETE, "I add.", None, 3),
    "empty thinking": (["<think>", "</think>", "9", "<end>"], "stop", COMPLETE, None, "9", 2),
    "two think blocks": (
        ["<think>", "a", "</think>", "b", "<think>", "c", "</think>", "9", "<end>"],
        *("stop", COMPLETE, "a\n\nb\n\nc", "9", 7),
    ),
    "two think blocks, the second cut": (
        ["<think>", "a", "</think>", "no answer yet", "<think>", "c"],
        *("length", TRUNCATED, "a\n\nno answer yet\n\nc", None, 6),
    ),
    "the opening mark alone": (["<think>"], "length", TRUNCATED, None, None, 1),
    "nothing but the end": (["<end>"], "stop", ABSENT, None, None, 0),
    "not ASCII": (["<think>", "数字 ü", "</think>", "🙂 é", "<end>"], "stop", COMPLETE, "数字 ü", "🙂 é", 3),
}


@pytest.mark.parametrize("case", CASES)
def test_thinking_and_answer_are_split(tokenizer: Tokenizer, words: Words, case: str) -> None:
    parts, reason, status, reasoning, answer, reasoning_parts = CASES[case]
    got = parse(tokenizer, words.ids(*parts), reason)
    assert (got.status, got.reasoning, got.answer) == (status, reasoning, answer)
    assert got.reasoning_tokens == len(words.ids(*parts[:reasoning_parts]))


def test_nothing_generated_is_nothing_answered(tokenizer: Tokenizer) -> None:
    got = parse(tokenizer, [], "length")
    assert (got.status, got.reasoning, got.answer, got.reasoning_tokens) == (ABSENT, None, None, 0)


OPENED: dict[str, tuple[list[str], str, ReasoningStatus, str | None, str | None, int]] = {
    "normal": (["I add.", "</think>", "9", "<end>"], "stop", COMPLETE, "I add.", "9", 2),
    "never closed": (["I add."], "length", TRUNCATED, "I add.", None, 1),
    "never closed, stopped by itself": (["I add.", "<end>"], "stop", MALFORMED, "I add.", None, 2),
    "opened again": (["<think>", "I add.", "</think>", "9"], "stop", MALFORMED, "I add.", "9", 3),
    "a second block": (
        ["a", "</think>", "b", "<think>", "c", "</think>", "9"],
        "stop",
        COMPLETE,
        "a\n\nb\n\nc",
        "9",
        6,
    ),
    "nothing": ([], "length", TRUNCATED, None, None, 0),
}


@pytest.mark.parametrize("case", OPENED)
def test_a_prompt_may_have_begun_the_thinking(tokenizer: Tokenizer, words: Words, case: str) -> None:
    parts, reason, status, reasoning, answer, reasoning_parts = OPENED[case]
    got = parse(tokenizer, words.ids(*parts), reason, opened=True)
    assert (got.status, got.reasoning, got.answer) == (status, reasoning, answer)
    assert got.reasoning_tokens == len(words.ids(*parts[:reasoning_parts]))


def byte(tokenizer: Tokenizer, value: int) -> int:
    """The token of a single byte; tekken numbers bytes directly after the control tokens."""
    token = 36 + value
    assert tokenizer.decode([36 + ord("a")]) == "a"
    return token


def test_bytes_that_are_no_text_do_not_stop_the_row(tokenizer: Tokenizer, words: Words) -> None:
    broken = [byte(tokenizer, 0xC3), byte(tokenizer, 0x28), byte(tokenizer, 0xFF)]
    got = parse(tokenizer, words.ids("<think>", "a", broken, "</think>", "b", broken, "<end>"))
    assert got.status is COMPLETE
    assert got.reasoning == "a\ufffd(\ufffd"
    assert got.answer == "b\ufffd(\ufffd"
    got.answer.encode()


def test_a_character_in_bytes_is_one_character(tokenizer: Tokenizer, words: Words) -> None:
    ids = words.ids("<think>", "a", "</think>", [byte(tokenizer, value) for value in "é🙂".encode()])
    assert parse(tokenizer, ids).answer == "é🙂"


def test_a_model_that_has_no_think_tokens_only_answers(tmp_path: Path, checkpoint: Path, words: Words) -> None:
    data = json.loads((checkpoint / "tekken.json").read_text())
    for token in data["special_tokens"]:
        if "THINK" in token["token_str"]:
            token["token_str"] = f"<SPECIAL_{token['rank']}>"
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    plain = Tokenizer(tmp_path)
    got = parse(plain, words.ids("It is 9.", "<end>"))
    assert (got.status, got.reasoning, got.answer) == (ABSENT, None, "It is 9.")


def test_any_order_of_tokens_is_split_without_loss(tokenizer: Tokenizer, words: Words) -> None:
    """Whatever a model writes: counts add up, open reasoning is never an answer, and every letter is somewhere."""
    rng = random.Random(11)
    for _ in range(500):
        parts = [rng.choice(["<think>", "</think>", "<end>", "x", "y", "z"]) for _ in range(rng.randrange(9))]
        reason, opened = rng.choice(["stop", "length", "repetition"]), rng.random() < 0.5
        got = parse(tokenizer, words.ids(*parts), reason, opened=opened)
        marks = [part for part in parts if part in ("<think>", "</think>")]
        still_open = marks[-1] == "<think>" if marks else opened
        assert (got.status in (TRUNCATED, MALFORMED)) >= still_open
        if still_open:
            assert got.answer is None
            assert got.status is (MALFORMED if reason == "stop" else TRUNCATED)
            assert got.answer_tokens == 0
        assert (got.status is ABSENT) == (not marks and not opened)
        letters = "".join(part for part in parts if part in "xyz")
        assert (got.reasoning or "").replace("\n", "") + (got.answer or "") == letters
        assert got.answer != ""
        assert got.reasoning != ""
